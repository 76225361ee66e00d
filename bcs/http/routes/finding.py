"""The call that finds batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import anyio
from aiohttp import web

from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.times import microseconds
from bcs.http.found_batches import criteria_of, cursor_in, encode_cursor, encoding_found
from bcs.http.parameters import BatchesQuery, batches_path, parse_query
from bcs.http.replies import reply_encoded
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
        cursor = cursor_in(query)
        criteria = criteria_of(query, self.definitions, microseconds(self.now()))
        async with self.reading:
            page = await self.finder.find(criteria, limit=query.limit, cursor=cursor)
            following = None if page.following is None else batches_path(query, encode_cursor(page.following))
            return reply_encoded(await paced(encoding_found(page, self.finder.law, self.finder.source, following)))
