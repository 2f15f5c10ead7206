"""A fast checksum of objects, beside the digest that names them.

Revision ID: r0003
Revises: r0002
"""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "taps_objects",
        sa.Column(
            "checksum",
            sa.String(length=64),
            nullable=True,
            comment="BLAKE3 of the file, hexadecimal; none if a version before this column put it there",
        ),
    )


def downgrade() -> None:
    op.drop_column("taps_objects", "checksum")
