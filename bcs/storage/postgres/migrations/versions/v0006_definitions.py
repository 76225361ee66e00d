"""Under which definitions facts of phases were recorded.

The release before goes on working, and does not know this table: what it records counts as unchanged.
"""

from bcs.storage.postgres.migrations import run_sql_beside

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Run the SQL file of the same name."""
    run_sql_beside(__file__)
