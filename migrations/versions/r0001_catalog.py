"""The catalog: objects, bases with their layers, tasks, what tasks have in common, runs, artifacts, budgets.

Revision ID: r0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "taps_objects",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the file, hexadecimal"),
        sa.Column("checksum", sa.String(length=64), nullable=False, comment="BLAKE3 of the file, hexadecimal"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="base or artifact"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_taps_objects")),
    )
    op.create_table(
        "taps_registry",
        sa.Column("id", sa.String(length=32), nullable=False, comment="also in the home folder's registry.json"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_registry")),
    )
    op.create_table(
        "taps_base_models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False, comment="timm's name of the architecture"),
        sa.Column("arguments", sa.JSON(), nullable=False, comment="of timm.create_model"),
        sa.Column(
            "plugin", sa.String(length=128), nullable=False, comment="architecture plugin that laid out the layers"
        ),
        sa.Column(
            "plugin_version", sa.String(length=256), nullable=False, comment="package that brought it, and its version"
        ),
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 over names, shapes, dtypes and bytes of tensors",
        ),
        sa.Column("object_digest", sa.String(length=64), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False, comment="values in parameters, classifier included"),
        sa.Column("backbone_params", sa.BigInteger(), nullable=False, comment="the same without the classifier"),
        sa.Column("input", sa.JSON(), nullable=False, comment="size, mean, std, interpolation, crop"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["object_digest"], ["taps_objects.digest"], name=op.f("fk_taps_base_models_object_digest_taps_objects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_base_models")),
        sa.UniqueConstraint("name", name=op.f("uq_taps_base_models_name")),
    )
    op.create_index(op.f("ix_taps_base_models_object_digest"), "taps_base_models", ["object_digest"])

    op.create_table(
        "taps_budgets",
        sa.Column("scope", sa.String(length=128), nullable=False, comment="name of the base, or * for all"),
        sa.Column("base_id", sa.Integer(), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_params", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["base_id"],
            ["taps_base_models.id"],
            name=op.f("fk_taps_budgets_base_id_taps_base_models"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_taps_budgets")),
        sa.UniqueConstraint("base_id", name=op.f("uq_taps_budgets_base_id")),
    )
    op.create_table(
        "taps_layers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False, comment="conv, linear, norm, ..."),
        sa.Column("stage", sa.String(length=128), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id"],
            ["taps_base_models.id"],
            name=op.f("fk_taps_layers_base_id_taps_base_models"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_layers")),
        sa.UniqueConstraint("base_id", "name", name=op.f("uq_taps_layers_base_id_name")),
        sa.UniqueConstraint("base_id", "position", name=op.f("uq_taps_layers_base_id_position")),
    )
    op.create_table(
        "taps_tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False, comment="training or ready"),
        sa.Column("classes", sa.JSON(), nullable=False, comment="in the order of the head's outputs"),
        sa.Column("input", sa.JSON(), nullable=True, comment="size, mean, std, interpolation, crop"),
        sa.Column("current_version", sa.Integer(), nullable=True, comment="of its artifacts; none while training"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id"], ["taps_base_models.id"], name=op.f("fk_taps_tasks_base_id_taps_base_models")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_tasks")),
        sa.UniqueConstraint("name", name=op.f("uq_taps_tasks_name")),
    )
    op.create_index(op.f("ix_taps_tasks_base_id"), "taps_tasks", ["base_id"])

    op.create_table(
        "taps_sets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False, comment="what the method extends a model with"),
        sa.Column("object_digest", sa.String(length=64), nullable=True, comment="none while its first task trains"),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id"], ["taps_base_models.id"], name=op.f("fk_taps_sets_base_id_taps_base_models")
        ),
        sa.ForeignKeyConstraint(
            ["object_digest"], ["taps_objects.digest"], name=op.f("fk_taps_sets_object_digest_taps_objects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_sets")),
        sa.UniqueConstraint("base_id", "name", name=op.f("uq_taps_sets_base_id_name")),
    )
    op.create_index(op.f("ix_taps_sets_object_digest"), "taps_sets", ["object_digest"])
    op.create_table(
        "taps_set_members",
        sa.Column("task_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("set_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["set_id"], ["taps_sets.id"], name=op.f("fk_taps_set_members_set_id_taps_sets")),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["taps_tasks.id"],
            name=op.f("fk_taps_set_members_task_id_taps_tasks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_taps_set_members")),
    )
    op.create_index(op.f("ix_taps_set_members_set_id"), "taps_set_members", ["set_id"])

    op.create_table(
        "taps_runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("task_name", sa.String(length=128), nullable=False),
        sa.Column("base_name", sa.String(length=128), nullable=False),
        sa.Column(
            "state",
            sa.String(length=16),
            nullable=False,
            comment="running, interrupted, failed, over-budget or finished",
        ),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False, comment="SHA-256 over the data set"),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="epochs completed"),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("tracker", sa.String(length=64), nullable=False),
        sa.Column("tracker_run", sa.String(length=128), nullable=False, comment="the tracker's own id of the run"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["taps_tasks.id"], name=op.f("fk_taps_runs_task_id_taps_tasks"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_runs")),
    )
    op.create_index(op.f("ix_taps_runs_task_id"), "taps_runs", ["task_id"])

    op.create_table(
        "taps_artifacts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("encoding", sa.String(length=64), nullable=False),
        sa.Column("packages", sa.JSON(), nullable=False, comment="package and version of its method and of each form"),
        sa.Column("open_layers", sa.Integer(), nullable=False),
        sa.Column("gated_layers", sa.Integer(), nullable=False, comment="layers the method could have stored"),
        sa.Column("params_weights", sa.BigInteger(), nullable=False),
        sa.Column("params_norms", sa.BigInteger(), nullable=False, comment="running statistics included"),
        sa.Column("params_head", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="of the file"),
        sa.Column("metrics", sa.JSON(), nullable=False, comment="measured on the stored artifact"),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["taps_objects.digest"], name=op.f("fk_taps_artifacts_digest_taps_objects")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["taps_runs.id"], name=op.f("fk_taps_artifacts_run_id_taps_runs"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["taps_tasks.id"], name=op.f("fk_taps_artifacts_task_id_taps_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_taps_artifacts")),
        sa.UniqueConstraint("task_id", "version", name=op.f("uq_taps_artifacts_task_id_version")),
    )
    op.create_index(op.f("ix_taps_artifacts_digest"), "taps_artifacts", ["digest"])
    op.create_index(op.f("ix_taps_artifacts_run_id"), "taps_artifacts", ["run_id"])

    op.create_table(
        "taps_artifact_layers",
        sa.Column("artifact_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layer_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False, comment="whether the layer is stored"),
        sa.Column("score", sa.Double(), nullable=True, comment="none for a method without scores"),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="of its tensors as encoded"),
        sa.ForeignKeyConstraint(
            ["artifact_id"],
            ["taps_artifacts.id"],
            name=op.f("fk_taps_artifact_layers_artifact_id_taps_artifacts"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["layer_id"], ["taps_layers.id"], name=op.f("fk_taps_artifact_layers_layer_id_taps_layers")
        ),
        sa.PrimaryKeyConstraint("artifact_id", "layer_id", name=op.f("pk_taps_artifact_layers")),
    )
    op.create_index("ix_taps_artifact_layers_layer_id", "taps_artifact_layers", ["layer_id"])


def downgrade() -> None:
    for name in (
        *("artifact_layers", "artifacts", "runs", "set_members", "sets", "tasks", "layers", "budgets"),
        *("base_models", "registry", "objects"),
    ):
        op.drop_table(f"taps_{name}")
