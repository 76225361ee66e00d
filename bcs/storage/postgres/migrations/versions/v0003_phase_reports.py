"""The table of phase reports gets its full name.

Statements of the release before fail from now on, as if the database were away: what such a replica has to write waits
in Redis for this release. That is meant: such a replica must give no complete stamp, since it does not count what waits
for this release.
"""

from bcs.storage.postgres.migrations import run_sql_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run the SQL file of the same name."""
    run_sql_beside(__file__)
