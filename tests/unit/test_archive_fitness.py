"""Databases that can't hold the archive."""

from __future__ import annotations

import pytest

from bcs.errors import ConfigurationError
from bcs.storage.postgres.fitness import ensure_usable


@pytest.mark.parametrize("version", [15, 18, 99])
def test_a_database_in_utf8_on_a_server_that_is_new_enough_is_usable(version: int) -> None:
    ensure_usable(version, "UTF8")


@pytest.mark.parametrize(
    ("version", "encoding", "named"),
    [
        (14, "UTF8", "PostgreSQL 14"),
        (9, "LATIN1", "PostgreSQL 9"),
        (18, "LATIN1", "LATIN1"),
        (15, "SQL_ASCII", "ASCII"),
    ],
)
def test_an_older_server_and_any_other_encoding_are_refused_by_name(version: int, encoding: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match="BCS_DATABASE_URL") as refusal:
        ensure_usable(version, encoding)
    assert named in str(refusal.value)
