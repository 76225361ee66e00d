"""The call that finds batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import anyio
from aiohttp import web

from bcs.domain.finding import Condition, Criteria
from bcs.domain.pipelines import PLATFORM_PHASES, PipelineDefinitions
from bcs.domain.times import microseconds
from bcs.http.found_batches import InvalidCursor, decode_cursor, encode_cursor, encoding_found
from bcs.http.parameters import BatchesQuery, batches_path, parse_query
from bcs.http.replies import reply_encoded
from bcs.http.requests import InvalidField, InvalidParameters
from bcs.storage.pace import paced
from bcs.usecases.find_batches import BatchFinder


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingHandlers:
    """The handler of the route that finds batches.

    :param reading: limits how much is read at the same time for callers.
    :param now: wall-clock time.
    """

    definitions: PipelineDefinitions
    finder: BatchFinder
    reading: anyio.Semaphore
    now: Callable[[], datetime]

    async def find(self, request: web.Request) -> web.Response:
        """GET /internal/v1/batches."""
        query = parse_query(BatchesQuery, request.query.items())
        try:
            cursor = None if query.cursor is None else decode_cursor(query.cursor)
        except InvalidCursor:
            raise InvalidParameters((InvalidField("cursor", "it is not from a `next` of BCS"),)) from None
        criteria = criteria_of(query, self.definitions, microseconds(self.now()))
        async with self.reading:
            page = await self.finder.find(criteria, limit=query.limit, cursor=cursor)
            following = None if page.following is None else batches_path(query, encode_cursor(page.following))
            return reply_encoded(await paced(encoding_found(page, self.finder.law, self.finder.source, following)))


def criteria_of(query: BatchesQuery, definitions: PipelineDefinitions, now_us: int) -> Criteria:
    """What the caller wants to find.

    :param now_us: wall-clock time in microseconds since 1970 UTC.
    :raises InvalidParameters: two parameters that exclude each other.
    :raises UnknownPipeline: nothing is defined under the name.
    """
    if query.phase is not None and query.pipeline is not None:
        raise InvalidParameters((InvalidField("phase", "it can't be given together with `pipeline`"),))
    phases: tuple[str, ...] | None = None
    if query.phase is not None:
        if query.phase not in {*definitions.phases, *PLATFORM_PHASES}:
            known = ", ".join(sorted({*definitions.phases, *PLATFORM_PHASES}))
            raise InvalidParameters((InvalidField("phase", f"must be one of {known}"),))
        phases = (query.phase,)
    elif query.pipeline is not None:
        phases = tuple(phase.name for phase in definitions.plan(query.pipeline))
    until_us, stale_us = _microseconds(query.until), query.stale_seconds * 1_000_000
    if query.state is Condition.STALE:
        # So the batches that have just changed need not be looked at.
        until_us = min(now_us - stale_us, now_us if until_us is None else until_us)
    return Criteria(
        condition=query.state,
        phases=phases,
        since_us=_microseconds(query.since),
        until_us=until_us,
        stale_us=stale_us,
    )


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else microseconds(time)
