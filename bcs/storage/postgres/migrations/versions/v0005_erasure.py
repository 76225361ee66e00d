"""The tombstones of erased batches.

The release before goes on working, and does not know the tombstones: what it writes of an erased batch is kept.
"""

from bcs.storage.postgres.migrations import run_sql_beside

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the SQL file of the same name."""
    run_sql_beside(__file__)
