"""Explained clips of queries, and which explanation was shown with an answer."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the changes."""
    with op.batch_alter_table("query", schema=None) as batch_op:
        batch_op.add_column(sa.Column("left_overlays", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("right_overlays", sa.JSON(none_as_null=True), nullable=True))

    with op.batch_alter_table("answer", schema=None) as batch_op:
        batch_op.add_column(sa.Column("overlay", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Take them back."""
    with op.batch_alter_table("answer", schema=None) as batch_op:
        batch_op.drop_column("overlay")

    with op.batch_alter_table("query", schema=None) as batch_op:
        batch_op.drop_column("right_overlays")
        batch_op.drop_column("left_overlays")
