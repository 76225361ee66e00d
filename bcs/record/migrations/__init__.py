"""The record's schema: plain SQL, one file for each version, applied by Alembic.

A version must leave the release before it able to work, since replicas of both run side by side during a deployment.
"""

from __future__ import annotations

from pathlib import Path

HEAD = "0001"
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
