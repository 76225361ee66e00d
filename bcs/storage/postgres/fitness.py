"""Decides whether a database that answers can hold the archive at all. Pure."""

from __future__ import annotations

from bcs.errors import DatabaseUnusable

LEAST_VERSION = 15
"""The first version of PostgreSQL in which a unique constraint can treat NULLs as equal."""

ENCODING = "UTF8"
"""Other encodings lack characters, or accept invalid bytes."""


def ensure_usable(version: int, encoding: str) -> None:
    """Refuse a database that never becomes usable by itself.

    :param version: the server's major version.
    :param encoding: the database's encoding, by PostgreSQL's name.
    :raises DatabaseUnusable: the database can't store all facts unchanged.
    """
    if version < LEAST_VERSION:
        raise DatabaseUnusable(f"a database of PostgreSQL {version}", f"BCS needs PostgreSQL {LEAST_VERSION} or newer")
    if encoding != ENCODING:
        raise DatabaseUnusable(
            f"a database in the encoding {encoding}, which can't store every text unchanged",
            f"create another one: CREATE DATABASE … ENCODING '{ENCODING}' TEMPLATE template0",
        )
