"""The state of a batch, and its history."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import anyio
from aiohttp import web

from bcs.domain.progress import Evaluation
from bcs.http import answers, history_answers
from bcs.http.documents import BatchPage, encoding_history, encoding_phase, encoding_state, extent_of, phases_to_show
from bcs.http.found_history import encoding_matches
from bcs.http.guard import BATCH_ID
from bcs.http.identity import Scope
from bcs.http.parameters import (
    BATCHES,
    EssaysQuery,
    HistoryQuery,
    essays_path,
    history_path,
    parse_batch_id,
    parse_query,
)
from bcs.http.problems import Problem, unknown_batch
from bcs.http.replies import reply_encoded
from bcs.http.routing import BATCH_ID_PARAMETER, OF_PATH, Group, Route, serves
from bcs.storage.pace import paced
from bcs.storage.postgres.history_reader import SearchedHistory, read_page, search_page
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.batch_reader import BatchReader

_ID_SEGMENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHandlers:
    """The handlers of the batches' routes.

    :param archive: reads the archive; None without an archive.
    :param reading: limits the number of batches and histories that are in memory at the same time.
    :param page_bytes: the approximate size of a response about a batch, for any number of essays.
    """

    definitions: ActiveDefinitions
    reader: BatchReader
    archive: SearchedHistory | None
    reading: anyio.Semaphore
    page_bytes: int

    @serves(
        Route(
            method="GET",
            path=f"{BATCHES}/{{id}}",
            name="showBatch",
            group=Group.BATCHES,
            summary="Show what is known of a batch, and which essays hold its phases back",
            answers={HTTPStatus.OK: answers.Batch},
            problems=("unknown-batch", "batch-erased", "unavailable"),
            scope=Scope.READ,
            query=EssaysQuery,
            path_parameters=BATCH_ID_PARAMETER,
            leads_to={"showHistory": OF_PATH},
        )
    )
    async def show(self, request: web.Request) -> web.Response:
        """GET /internal/v1/batches/{id}."""
        batch_id = batch_id_of(request)
        query = parse_query(EssaysQuery, request.query.items())
        async with self.reading:
            rules = self.definitions.current
            state, version, source = await self.reader.state(batch_id, rules.law)
            if state.empty:
                raise unknown_batch()
            evaluation = Evaluation(state, rules.law)
            names = phases_to_show(state, rules.definitions.phases)
            extent = extent_of(query.after, query.limit, page_bytes=self.page_bytes, phases=len(names))
            phases = []
            for name in names:
                explanation = await paced(evaluation.explaining(name))
                phases.append(await paced(encoding_phase(explanation, extent)))
            page = BatchPage(
                batch_id=batch_id,
                state=state,
                version=version,
                source=source,
                essays=evaluation.essays,
                extent=extent,
                next_after=partial(essays_path, batch_id, query.limit),
            )
            return reply_encoded(await paced(encoding_state(page, phases)))

    @serves(
        Route(
            method="GET",
            path=f"{BATCHES}/{{id}}/history",
            name="showHistory",
            group=Group.BATCHES,
            summary="Show what became known of a batch and what was answered because of it, newest first",
            answers={HTTPStatus.OK: history_answers.History},
            problems=("no-archive", "unknown-batch", "unavailable"),
            scope=Scope.READ,
            query=HistoryQuery,
            path_parameters=BATCH_ID_PARAMETER,
        )
    )
    async def history(self, request: web.Request) -> web.Response:
        """GET /internal/v1/batches/{id}/history."""
        if self.archive is None:
            raise no_archive()
        batch_id = batch_id_of(request)
        query = parse_query(HistoryQuery, request.query.items())
        async with self.reading:
            if not query.filter.empty:
                found = await search_page(self.archive, batch_id, query.filter, before=query.before, limit=query.limit)
                if found is None:
                    raise unknown_batch()
                older = found.continues_before
                following = None if older is None else history_path(batch_id, query, older)
                return reply_encoded(await paced(encoding_matches(batch_id, found, following)))
            page = await read_page(self.archive, batch_id, before=query.before, limit=query.limit)
            if page is None:
                raise unknown_batch()
            older = page.continues_before
            following = None if older is None else history_path(batch_id, query, older)
            return reply_encoded(await paced(encoding_history(batch_id, page.entries, following)))


def batch_id_of(request: web.Request) -> str:
    """The batch in the path of a request.

    :raises InvalidParameters: no batch can have this id.
    """
    # The raw path is needed. In the decoded path, bytes that are not UTF-8 stay percent-encoded, so an id that contains
    # "%FF" as text would look the same.
    segment = request.rel_url.raw_path.split("/")[_ID_SEGMENT]
    request[BATCH_ID] = batch_id = parse_batch_id(segment.encode(errors="surrogateescape"))
    return batch_id


def no_archive() -> Problem:
    """404: no history is kept."""
    return Problem("no-archive", "there is no archive: BCS_DATABASE_URL is not set")
