"""The parameters in the path and the query of a request about a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated
from urllib.parse import quote, unquote_to_bytes

from pydantic import Field, TypeAdapter, ValidationError

from bcs.http.requests import Body, BodyT, InvalidField, InvalidParameters, named_fields
from bcs.wire.events import Identifier

BATCHES = "/internal/v1/batches"
MOST_ENTRIES = 500
USUAL_ENTRIES = 50
MOST_ESSAYS = 5000
USUAL_ESSAYS = 500
HIGHEST_NUMBER = 2**63 - 1
MOST_REASON_CHARACTERS = 200
"""A request line has at most 8 KiB, and a character may take twelve bytes there, as in the id of the batch."""

_identifier: TypeAdapter[str] = TypeAdapter(Identifier)


class HistoryQuery(Body):
    """The page of a history that the caller requests.

    :param before: only entries with lower numbers; None begins with the newest entry.
    """

    limit: Annotated[int, Field(ge=1, le=MOST_ENTRIES)] = USUAL_ENTRIES
    before: Annotated[int, Field(ge=1, le=HIGHEST_NUMBER)] | None = None


class EssaysQuery(Body):
    """The essays of a batch that the caller requests, in the order of their ids.

    :param after: only essays whose ids come after this id; None begins with the first essay.
    """

    limit: Annotated[int, Field(ge=1, le=MOST_ESSAYS)] = USUAL_ESSAYS
    after: Annotated[str, Field(min_length=1)] | None = None


class ErasureQuery(Body):
    """How a batch is to be erased.

    :param reason: for the entry that is kept.
    :param dry_run: True to count only.
    """

    reason: Annotated[str, Field(min_length=1, max_length=MOST_REASON_CHARACTERS)]
    dry_run: bool = False


def parse_query(model: type[BodyT], query: Iterable[tuple[str, str]]) -> BodyT:
    """Parse a query.

    :raises InvalidParameters: the query is invalid. The error names each parameter, and does not repeat the text of the
        caller.
    """
    given: dict[str, str] = {}
    for name, value in query:
        if name in given and name in model.model_fields:
            raise InvalidParameters((InvalidField(name, "it must occur only once"),))
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidParameters(named_fields(error, "query")) from None


def parse_batch_id(segment: bytes) -> str:
    """Parse the batch id in a segment of a path.

    :param segment: the bytes that the caller sent, still percent-encoded.
    :raises InvalidParameters: no batch can have this id.
    """
    try:
        return _identifier.validate_python(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        raise InvalidParameters((InvalidField("batch_id", "it is not UTF-8 text"),)) from None
    except ValidationError as error:
        raise InvalidParameters(named_fields(error, "batch_id")) from None


def history_path(batch_id: str, limit: int, before: int) -> str:
    """The path and query of a page of a batch's history."""
    return f"{_batch_path(batch_id)}/history?limit={limit}&before={before}"


def essays_path(batch_id: str, limit: int, after: str) -> str:
    """The path and query of the state of a batch, with the essays after a given essay."""
    return f"{_batch_path(batch_id)}?limit={limit}&after={quote(after, safe='')}"


def erasure_path(batch_id: str, reason: str, *, dry_run: bool) -> str:
    """The path and query that erase a batch."""
    return f"{_batch_path(batch_id)}?reason={quote(reason, safe='')}{'&dry_run=true' if dry_run else ''}"


def _batch_path(batch_id: str) -> str:
    segment = quote(batch_id, safe="")
    if not batch_id.strip("."):
        # Clients resolve a segment of dots only ("." or "..") to another path.
        segment = segment.replace(".", "%2E")
    return f"{BATCHES}/{segment}"
