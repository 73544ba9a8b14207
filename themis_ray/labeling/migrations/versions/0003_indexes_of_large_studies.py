"""Indexes for what would read all queries or all answers of a large study."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

IS_OPEN = sa.text("num_taken < overlap")


def upgrade() -> None:
    """Make the changes."""
    op.create_index("ix_query_kind", "query", ["study_id", "kind", "place"])
    op.create_index(
        "ix_query_open",
        "query",
        ["study_id", "kind", "num_taken", "place"],
        sqlite_where=IS_OPEN,
        postgresql_where=IS_OPEN,
    )
    op.drop_index("ix_query_pick", table_name="query")
    op.create_index("ix_answer_assignment", "answer", ["assignment_id"])


def downgrade() -> None:
    """Take them back."""
    op.drop_index("ix_answer_assignment", table_name="answer")
    op.create_index("ix_query_pick", "query", ["study_id", "kind", "num_taken", "place"])
    op.drop_index("ix_query_open", table_name="query")
    op.drop_index("ix_query_kind", table_name="query")
