"""The calls that find batches, and entries of their histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

import anyio
from aiohttp import web

from bcs.domain.law import CompletionLaw
from bcs.domain.times import microseconds
from bcs.http import answers, history_answers
from bcs.http.found_batches import criteria_of, cursor_in, encode_cursor, encoding_found
from bcs.http.found_history import encoding_found_history
from bcs.http.identity import Scope
from bcs.http.parameters import (
    BATCHES,
    HISTORY,
    BatchesQuery,
    FoundHistoryQuery,
    batches_path,
    found_history_path,
    parse_query,
)
from bcs.http.replies import reply_encoded
from bcs.http.routes.batches import no_archive
from bcs.http.routing import Group, Route, serves
from bcs.storage.pace import paced
from bcs.storage.postgres.history_reader import SearchedHistory
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.find_batches import BatchFinder


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingHandlers:
    """The handlers of the routes that find something.

    :param finder: makes a finder that judges batches by a law.
    :param archive: None without an archive.
    :param reading: limits how much is read at the same time for callers.
    :param now: wall-clock time.
    """

    definitions: ActiveDefinitions
    finder: Callable[[CompletionLaw], BatchFinder]
    archive: SearchedHistory | None
    reading: anyio.Semaphore
    now: Callable[[], datetime]

    @serves(
        Route(
            method="GET",
            path=HISTORY,
            name="findHistory",
            group=Group.BATCHES,
            summary="Find the entries of all batches' histories with a correlation id, newest first",
            answers={HTTPStatus.OK: history_answers.FoundHistory},
            problems=("no-archive", "unavailable"),
            scope=Scope.READ,
            query=FoundHistoryQuery,
        )
    )
    async def find_history(self, request: web.Request) -> web.Response:
        """GET /internal/v1/history."""
        if self.archive is None:
            raise no_archive()
        query = parse_query(FoundHistoryQuery, request.query.items())
        correlation_id = query.correlation_id
        async with self.reading:
            found = await self.archive.search.everywhere(
                correlation_id, query.filter, before=query.before, limit=query.limit
            )
            older = found.continues_before
            following = None if older is None else found_history_path(query, older)
            return reply_encoded(await paced(encoding_found_history(correlation_id, found, following)))

    @serves(
        Route(
            method="GET",
            path=BATCHES,
            name="findBatches",
            group=Group.BATCHES,
            summary="Find batches by their state and their last change, the last changed first",
            answers={HTTPStatus.OK: answers.Batches},
            problems=("unknown-pipeline", "unavailable"),
            scope=Scope.READ,
            query=BatchesQuery,
        )
    )
    async def find(self, request: web.Request) -> web.Response:
        """GET /internal/v1/batches."""
        query = parse_query(BatchesQuery, request.query.items())
        cursor = cursor_in(query)
        rules = self.definitions.current
        finder = self.finder(rules.law)
        criteria = criteria_of(query, rules.definitions, microseconds(self.now()))
        async with self.reading:
            page = await finder.find(criteria, limit=query.limit, cursor=cursor)
            following = None if page.following is None else batches_path(query, encode_cursor(page.following))
            return reply_encoded(await paced(encoding_found(page, finder.law, finder.source, following)))
