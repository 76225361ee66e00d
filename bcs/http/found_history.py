"""Entries of the history that were found, as documents for the service and the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from bcs.domain.history import ArchivedEntry
from bcs.domain.slices import Sliced
from bcs.http.documents import encoding_history, history_document
from bcs.storage.postgres.history_reader import FoundEntries


def matches_document(batch_id: str, found: FoundEntries, following: str | int | None) -> dict[str, Any]:
    """The entries of one batch.

    :param following: the `next` member.
    """
    return {**history_document(batch_id, found.entries, following), "scanned": found.scanned}


def encoding_matches(batch_id: str, found: FoundEntries, following: str | None) -> Sliced[bytes]:
    """The entries of one batch as JSON, encoded in slices."""
    encoded = yield from encoding_history(batch_id, found.entries, following)
    return b'%b,"scanned":%d}' % (encoded[:-1], found.scanned)


def found_history_document(correlation_id: str, found: FoundEntries, following: str | int | None) -> dict[str, Any]:
    """The entries of all batches.

    :param following: the `next` member.
    """
    return {**_without_entries(correlation_id, found, following), "entries": _entries(found.entries)}


def encoding_found_history(correlation_id: str, found: FoundEntries, following: str | None) -> Sliced[bytes]:
    """The entries of all batches as JSON, encoded in slices, because an entry may name thousands of essays."""
    encoded: list[bytes] = []
    for archived in found.entries:
        encoded.append(to_json(_entries([archived]))[1:-1])
        yield
    rest = to_json(_without_entries(correlation_id, found, following))
    yield
    return b'%b,"entries":[%b]}' % (rest[:-1], b",".join(encoded))


def _without_entries(correlation_id: str, found: FoundEntries, following: str | int | None) -> dict[str, Any]:
    return {"correlation_id": correlation_id, "scanned": found.scanned, "next": following}


def _entries(entries: Sequence[ArchivedEntry]) -> list[dict[str, Any]]:
    documents = []
    for archived in entries:
        batch_id = archived.entry.batch_id
        [document] = history_document(batch_id, [archived], None)["entries"]
        documents.append({"batch_id": batch_id, "entry": document})
    return documents
