"""The parameters in the path and the query of a request about a batch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal
from urllib.parse import quote, unquote_to_bytes, urlencode

from pydantic import AwareDatetime, BeforeValidator, Field, TypeAdapter, ValidationError

from bcs.domain.finding import Condition
from bcs.domain.history_filter import HistoryFilter
from bcs.domain.times import microseconds
from bcs.http.requests import Body, BodyT, InvalidField, InvalidParameters, named_fields
from bcs.wire.events import MOST_ID_CHARACTERS, Identifier

BATCHES = "/internal/v1/batches"
HISTORY = "/internal/v1/history"
PIPELINES = "/internal/v1/pipelines"
MOST_ENTRIES = 500
USUAL_ENTRIES = 50
MOST_ESSAYS = 5000
USUAL_ESSAYS = 500
MOST_BATCHES = 500
USUAL_BATCHES = 50
MOST_SECONDS = 10 * 366 * 86_400
USUAL_STALE_SECONDS = 3600
HIGHEST_NUMBER = 2**63 - 1
MOST_REASON_CHARACTERS = 200
"""A request line has at most 8 KiB, and a character may take twelve bytes there, as in the id of the batch."""

_is_rfc3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.IGNORECASE).match


def _as_rfc3339(value: object) -> object:
    # pydantic itself would take numbers, too, also those in a text.
    if not (isinstance(value, str) and _is_rfc3339(value)):
        raise ValueError("must be a time like 2026-01-31T08:00:00Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_as_rfc3339)]

_identifier: TypeAdapter[str] = TypeAdapter(Identifier)


class HistoryQuery(Body):
    """The page of a history that the caller requests.

    :param before: only entries with lower numbers; None begins with the newest entry.
    """

    limit: Annotated[int, Field(ge=1, le=MOST_ENTRIES)] = USUAL_ENTRIES
    before: Annotated[int, Field(ge=1, le=HIGHEST_NUMBER)] | None = None
    since: Annotated[Time | None, Field(description="Recorded then or later.")] = None
    until: Annotated[Time | None, Field(description="Recorded then or earlier.")] = None
    correlation_id: Annotated[str | None, Field(min_length=1, max_length=MOST_ID_CHARACTERS)] = None
    type: Annotated[
        str | None,
        Field(min_length=1, description="`facts`, `resolution`, `erasure`, or an event type such as `PhaseReported`."),
    ] = None

    @property
    def filter(self) -> HistoryFilter:
        """What the entries must be like."""
        return HistoryFilter(
            since_us=None if self.since is None else microseconds(self.since),
            until_us=None if self.until is None else microseconds(self.until),
            correlation_id=self.correlation_id,
            entry_type=self.type,
        )


class FoundHistoryQuery(HistoryQuery):
    """The page of the history of all batches that the caller requests."""

    correlation_id: Annotated[str, Field(min_length=1, max_length=MOST_ID_CHARACTERS)]


class WantedBatches(Body):
    """What batches are like that the caller wants."""

    state: Annotated[
        Condition | None,
        Field(description="Only batches in this state; `phase` and `pipeline` say which phases count for it."),
    ] = None
    phase: Annotated[
        str | None,
        Field(min_length=1, description="Only this phase counts. Without `state`: has facts about it."),
    ] = None
    pipeline: Annotated[
        str | None,
        Field(
            min_length=1,
            description="The phases of this pipeline count. Without `state`: has facts about one.",
        ),
    ] = None
    since: Annotated[Time | None, Field(description="The last change was then or later.")] = None
    until: Annotated[Time | None, Field(description="The last change was then or earlier.")] = None
    stale_seconds: Annotated[
        int,
        Field(ge=1, le=MOST_SECONDS, description="An incomplete batch is stale after so long without a change."),
    ] = USUAL_STALE_SECONDS
    cursor: Annotated[str | None, Field(min_length=1, description="From the `next` of the page before.")] = None


class BatchesQuery(WantedBatches):
    """The batches that the caller wants to find."""

    limit: Annotated[int, Field(ge=1, le=MOST_BATCHES)] = USUAL_BATCHES


class EssaysQuery(Body):
    """The essays of a batch that the caller requests, in the order of their ids.

    :param after: only essays whose ids come after this id; None begins with the first essay.
    """

    limit: Annotated[int, Field(ge=1, le=MOST_ESSAYS)] = USUAL_ESSAYS
    after: Annotated[str, Field(min_length=1)] | None = None


class ExplainQuery(Body):
    """How much an explanation shows.

    :param explain: `full` also lists all essays, page by page.
    :param limit: with `full`, how many essays a page has at most.
    :param after: with `full`, only essays whose ids come after this id; None begins with the first essay.
    """

    explain: Literal["short", "full"] = "short"
    limit: Annotated[int, Field(ge=1, le=MOST_ESSAYS)] = USUAL_ESSAYS
    after: Annotated[str, Field(min_length=1)] | None = None


class DefineQuery(Body):
    """The query of a request to define a pipeline.

    :param explain: as the field of the body; it counts if the body has none.
    """

    explain: Literal["true", "false", "full"] | None = None


class GraphFormat(StrEnum):
    """The languages for graphs."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


class GraphQuery(Body):
    """The graph that the caller requests.

    :param batch: the id of the batch whose state gives the phases their colours; None for none.
    """

    format: GraphFormat = GraphFormat.MERMAID
    batch: Identifier | None = None


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
    return parse_segment(segment, "batch_id")


def parse_segment(segment: bytes, name: str) -> str:
    """Parse an identifier in a segment of a path.

    :param segment: the bytes that the caller sent, still percent-encoded.
    :param name: the name of the parameter.
    :raises InvalidParameters: nothing can have this identifier.
    """
    try:
        return _identifier.validate_python(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        raise InvalidParameters((InvalidField(name, "it is not UTF-8 text"),)) from None
    except ValidationError as error:
        raise InvalidParameters(named_fields(error, name)) from None


def history_path(batch_id: str, query: HistoryQuery, before: int) -> str:
    """The path and query of the next page of a batch's history."""
    return f"{_batch_path(batch_id)}/history?{_next_entries(query, before)}"


def found_history_path(query: FoundHistoryQuery, before: int) -> str:
    """The path and query of the next page of the history of all batches."""
    return f"{HISTORY}?{_next_entries(query, before)}"


def _next_entries(query: HistoryQuery, before: int) -> str:
    wanted = query.model_dump(mode="json", exclude_none=True, exclude={"limit", "before"})
    return urlencode({"limit": query.limit, "before": before, **wanted})


def essays_path(batch_id: str, limit: int, after: str) -> str:
    """The path and query of the state of a batch, with the essays after a given essay."""
    return f"{_batch_path(batch_id)}?limit={limit}&after={quote(after, safe='')}"


def explain_path(batch_id: str, pipeline: str) -> str:
    """The path of the explanation of a pipeline for a batch."""
    return f"{_batch_path(batch_id)}/explain/{_segment(pipeline)}"


def explained_essays_path(batch_id: str, pipeline: str, limit: int, after: str) -> str:
    """The path and query of a full explanation, with the essays after a given essay."""
    return f"{explain_path(batch_id, pipeline)}?explain=full&limit={limit}&after={quote(after, safe='')}"


def invalidate_path(batch_id: str) -> str:
    """The path for taking completions of a batch back."""
    return f"{_batch_path(batch_id)}/invalidate"


def batches_path(query: BatchesQuery, cursor: str) -> str:
    """The path and query of the page of batches that begins at a cursor."""
    given = query.model_dump(mode="json", exclude_unset=True) | {"cursor": cursor}
    return f"{BATCHES}?{urlencode(given)}"


def erasure_path(batch_id: str, reason: str, *, dry_run: bool) -> str:
    """The path and query that erase a batch."""
    return f"{_batch_path(batch_id)}?reason={quote(reason, safe='')}{'&dry_run=true' if dry_run else ''}"


def _batch_path(batch_id: str) -> str:
    return f"{BATCHES}/{_segment(batch_id)}"


def _segment(name: str) -> str:
    segment = quote(name, safe="")
    if not name.strip("."):
        # Clients resolve a segment of dots only ("." or "..") to another path.
        segment = segment.replace(".", "%2E")
    return segment
