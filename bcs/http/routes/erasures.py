"""Erases a batch."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from bcs.domain.times import format_timestamp
from bcs.http import answers
from bcs.http.guard import asked_by, correlation_id_of
from bcs.http.identity import Scope
from bcs.http.parameters import BATCHES, ErasureQuery, parse_query
from bcs.http.replies import reply_json
from bcs.http.routes.batches import batch_id_of
from bcs.http.routing import BATCH_ID_PARAMETER, OF_PATH, Group, Route, serves
from bcs.usecases.erase_batch import BatchEraser, EraseBatch


@dataclass(frozen=True, slots=True)
class ErasureHandlers:
    """The handler of the route that erases a batch."""

    eraser: BatchEraser

    @serves(
        Route(
            method="DELETE",
            path=f"{BATCHES}/{{id}}",
            name="eraseBatch",
            span="erase",
            group=Group.BATCHES,
            summary="Erase a batch from the stores, and drop what arrives about it for a time",
            answers={HTTPStatus.OK: answers.BatchErased},
            problems=("unavailable",),
            scope=Scope.OPERATE,
            query=ErasureQuery,
            path_parameters=BATCH_ID_PARAMETER,
            leads_to={"showHistory": OF_PATH},
        )
    )
    async def erase(self, request: web.Request) -> web.Response:
        """DELETE /internal/v1/batches/{id}."""
        batch_id = batch_id_of(request)
        query = parse_query(ErasureQuery, request.query.items())
        erased = await self.eraser.erase(
            EraseBatch(
                batch_id=batch_id,
                caller=asked_by(request),
                reason=query.reason,
                correlation_id=correlation_id_of(request),
                dry_run=query.dry_run,
            )
        )
        erasure = erased.erasure
        answer: answers.BatchErased = {
            "batch_id": batch_id,
            "dry_run": query.dry_run,
            "erased_at": format_timestamp(erasure.at_us),
            "refused_until": format_timestamp(erasure.until_us),
            "erased_by": erasure.erased_by,
            "reason": erasure.reason,
            "removed": [{"place": each.place, "what": each.what, "count": each.count} for each in erased.removed],
            "left": [{"what": each.what, "why": each.why} for each in erased.left],
        }
        return reply_json(answer)
