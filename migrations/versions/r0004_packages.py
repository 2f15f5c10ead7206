"""The packages that brought the method and the forms of an artifact.

Revision ID: r0004
Revises: r0003
"""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "taps_artifacts",
        sa.Column(
            "packages",
            sa.JSON(),
            nullable=False,
            server_default="{}",
            comment="package and version of its method and of each form",
        ),
    )


def downgrade() -> None:
    op.drop_column("taps_artifacts", "packages")
