"""Batches are found by their last change, and entries of the history by their correlation id.

The release before can go on beside this one. Batches that it writes are found by the day of their last write.
"""

from bcs.storage.postgres.migrations import run_sql_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run the SQL file of the same name."""
    run_sql_beside(__file__)
