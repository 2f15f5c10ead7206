"""Tensors that several tasks have in common, and the version of the plugin that laid out a base.

Revision ID: r0002
Revises: r0001
"""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "taps_base_models",
        sa.Column(
            "plugin_version",
            sa.String(length=256),
            server_default="",
            nullable=False,
            comment="package that brought it, and its version",
        ),
    )
    op.create_table(
        "taps_common",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False, comment="what the method extends a model with"),
        sa.Column("object_digest", sa.String(length=64), nullable=True, comment="none while its first task trains"),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id"], ["taps_base_models.id"], name=op.f("fk_taps_common_base_id_taps_base_models")
        ),
        sa.ForeignKeyConstraint(
            ["object_digest"], ["taps_objects.digest"], name=op.f("fk_taps_common_object_digest_taps_objects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_common")),
        sa.UniqueConstraint("base_id", "name", name=op.f("uq_taps_common_base_id_name")),
    )
    op.create_index(op.f("ix_taps_common_object_digest"), "taps_common", ["object_digest"])
    op.create_table(
        "taps_common_tasks",
        sa.Column("task_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("common_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["common_id"], ["taps_common.id"], name=op.f("fk_taps_common_tasks_common_id_taps_common")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["taps_tasks.id"],
            name=op.f("fk_taps_common_tasks_task_id_taps_tasks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_taps_common_tasks")),
    )
    op.create_index(op.f("ix_taps_common_tasks_common_id"), "taps_common_tasks", ["common_id"])


def downgrade() -> None:
    op.drop_table("taps_common_tasks")
    op.drop_table("taps_common")
    op.drop_column("taps_base_models", "plugin_version")
