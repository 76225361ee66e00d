"""Whether a database that answers can keep the record at all. Pure."""

from __future__ import annotations

from bcs.errors import DatabaseUnusable

LEAST_VERSION = 15
"""Of PostgreSQL: before it no unique constraint takes two NULLs for the same."""

ENCODING = "UTF8"
"""Any other lacks characters, or takes bytes that are none."""


def ensure_usable(version: int, encoding: str) -> None:
    """Refuse what never becomes usable by itself.

    :param version: of the server, the first of its numbers.
    :param encoding: of the database, by PostgreSQL's name.
    :raises DatabaseUnusable: facts can't be kept there as they are.
    """
    if version < LEAST_VERSION:
        raise DatabaseUnusable(f"a database of PostgreSQL {version}", f"BCS needs PostgreSQL {LEAST_VERSION} or newer")
    if encoding != ENCODING:
        raise DatabaseUnusable(
            f"a database in the encoding {encoding}, which does not keep every text as it is",
            f"create another one: CREATE DATABASE … ENCODING '{ENCODING}' TEMPLATE template0",
        )
