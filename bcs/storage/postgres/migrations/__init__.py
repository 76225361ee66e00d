"""The schema of the archive, one script for each version, applied by Alembic: plain SQL where that can say it.

A script never changes once it was released, so it imports nothing that may. Replicas of two releases run side by side
during a deployment: a version leaves the release before it able to work, or makes its statements fail as those of a
database that is away (an undefined table or column), so that what it has to write waits in Redis for this release.
"""

from __future__ import annotations

from pathlib import Path

HEAD = "0006"
"""The newest version."""

VERSION_TABLE = "bcs_schema_version"
"""Not Alembic's own name: other services may have their tables in the same database."""


def run_sql_beside(script: str) -> None:
    """Run the statements of the SQL file that has a script's name; each ends with a semicolon at the end of a line.

    :param script: the path of a version's script.
    """
    from alembic import op

    for statement in Path(script).with_suffix(".sql").read_text().split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)
