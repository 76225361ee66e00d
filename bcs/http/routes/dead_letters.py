"""The routes about dead letters: the newest ones, and to replay some."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web

from bcs.http.dead_letters import (
    DeadLetterDesk,
    DeadLetters,
    DeadLettersQuery,
    DeadLettersReplayed,
    FoundDeadLetters,
    ListedDeadLetter,
    ReplayedDeadLetters,
    WantedDeadLetters,
)
from bcs.http.guard import asked_by, caller_of
from bcs.http.identity import Scope
from bcs.http.parameters import parse_query
from bcs.http.replies import reply_json
from bcs.http.requests import InvalidBody, InvalidField
from bcs.http.routes.pipelines import PipelineHandlers, parsed_body
from bcs.http.routing import Group, Route, serves
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition

log = structlog.stdlib.get_logger("bcs.http", actor="http")

DEAD_LETTERS: Final = "/internal/v1/dead-letters"
_MOST_ERROR_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class DeadLetterHandlers:
    """The handlers of the routes about dead letters.

    :param pipelines: asks for failed resolutions again.
    """

    desk: DeadLetterDesk
    pipelines: PipelineHandlers

    @serves(
        Route(
            method="GET",
            path=DEAD_LETTERS,
            name="listDeadLetters",
            group=Group.DEAD_LETTERS,
            summary="List the newest dead letters",
            answers={HTTPStatus.OK: DeadLetters},
            problems=("unavailable",),
            scope=Scope.READ,
            query=DeadLettersQuery,
        )
    )
    async def newest(self, request: web.Request) -> web.Response:
        """GET /internal/v1/dead-letters."""
        query = parse_query(DeadLettersQuery, request.query.items())
        found = await self.desk.newest(
            WantedDeadLetters(
                limit=query.limit,
                waiting=query.state == "waiting",
                topic=query.topic,
                reason=query.reason,
                batch=query.batch,
            )
        )
        return reply_json(_document(found))

    @serves(
        Route(
            method="POST",
            path=f"{DEAD_LETTERS}/replay",
            name="replayDeadLetters",
            group=Group.DEAD_LETTERS,
            summary="Replay dead letters: messages to their topics, and resolutions by this service",
            answers={HTTPStatus.OK: DeadLettersReplayed},
            problems=("unavailable",),
            scope=Scope.OPERATE,
            body=ReplayedDeadLetters,
        )
    )
    async def replay(self, request: web.Request) -> web.Response:
        """POST /internal/v1/dead-letters/replay."""
        body = parsed_body(request, ReplayedDeadLetters).body
        positions = [_position(text) for text in body.dead_letters]
        foreign = [place for place, each in enumerate(positions) if each.topic not in topics.DEAD_LETTERS]
        if foreign:
            problem = "this topic has no dead letters of BCS"
            raise InvalidBody(tuple(InvalidField(f"dead_letters.{place}", problem) for place in foreign))
        caller, quota_of = asked_by(request), caller_of(request)
        results = await self.desk.replay(
            positions,
            again=body.again,
            by=caller,
            resolve=partial(self.pipelines.resolve_again, caller=caller, quota_of=quota_of),
        )
        failed = sum(result.problem is not None for result in results)
        log.info("dead_letters_replayed", replayed=len(results) - failed, failed=failed, requested_by=caller)
        document: DeadLettersReplayed = {
            "results": [
                {
                    "position": str(result.position),
                    "status": "replayed" if result.problem is None else "failed",
                    "problem": result.problem,
                }
                for result in results
            ],
            "replayed": len(results) - failed,
            "failed": failed,
        }
        return reply_json(document)


def _position(text: str) -> DeadLetterPosition:
    topic, partition, offset = text.rsplit("/", 2)
    return DeadLetterPosition(topic, int(partition), int(offset))


def _document(found: FoundDeadLetters) -> DeadLetters:
    return {
        "dead_letters": [_listed(each, replayed=each.position in found.replayed) for each in found.dead_letters],
        "unreadable": [
            {"position": str(position), "problem": problem} for position, problem in found.unreadable.items()
        ],
        "stalled": found.stalled,
        "older": found.older,
    }


def _listed(dead_letter: DeadLetter, *, replayed: bool) -> ListedDeadLetter:
    source = f"{dead_letter.source_topic}/{dead_letter.source_partition}/{dead_letter.source_offset}"
    return {
        "position": str(dead_letter.position),
        "time": dead_letter.timestamp,
        "reason": dead_letter.reason,
        "batch_id": dead_letter.batch_id,
        "source": "POST /internal/v1/pipelines/define" if dead_letter.is_resolution else source,
        "error": f"{dead_letter.error_type}: {dead_letter.error_message}"[:_MOST_ERROR_CHARACTERS],
        "failures": dead_letter.failures,
        "replayed": replayed,
        "service": dead_letter.service,
    }
