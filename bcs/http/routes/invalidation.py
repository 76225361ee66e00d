"""The operators' call that takes completions of a batch back."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from bcs.domain.invalidation import Invalidation, PhaseTakenBack
from bcs.domain.times import format_timestamp
from bcs.errors import UnknownEssays
from bcs.http import answers
from bcs.http.documents import OUTCOMES, ending_document, mark_document
from bcs.http.guard import asked_by, correlation_id_of
from bcs.http.identity import Scope
from bcs.http.parameters import BATCHES
from bcs.http.problems import unknown_batch
from bcs.http.replies import reply_json
from bcs.http.requests import InvalidatedPhases, InvalidBody, InvalidField
from bcs.http.routes.batches import batch_id_of
from bcs.http.routes.pipelines import parsed_body
from bcs.http.routing import BATCH_ID_PARAMETER, OF_PATH, Group, Route, serves
from bcs.http.tracing import cause_of, span_of
from bcs.observability.tracing import Tracer
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.invalidate_phases import InvalidatePhases, PhaseInvalidator

NO_SUCH_ESSAY = "the batch has no essay with this id"
"""What is said about an essay that the batch of the request does not have."""

_LISTED = 100
"""How many essays the answer lists for a phase."""
_ERRORS = 20
_MOST_FACTS = 5_000
"""As many as a commit has of messages from Kafka, because a commit blocks Redis."""


@dataclass(frozen=True, slots=True)
class InvalidationHandlers:
    """The handlers of the route that takes completions back."""

    invalidator: PhaseInvalidator
    definitions: ActiveDefinitions
    tracer: Tracer

    @serves(
        Route(
            method="POST",
            path=f"{BATCHES}/{{id}}/invalidate",
            name="invalidatePhases",
            span="invalidate",
            group=Group.PHASES,
            summary="Take completions of a batch back, so that phases run again",
            answers={HTTPStatus.OK: answers.PhasesInvalidated},
            problems=("unknown-batch", "batch-erased", "invalidation-outdated", "unavailable"),
            scope=Scope.OPERATE,
            body=InvalidatedPhases,
            path_parameters=BATCH_ID_PARAMETER,
            leads_to={"showBatch": OF_PATH, "showHistory": OF_PATH},
        )
    )
    async def invalidate(self, request: web.Request) -> web.Response:
        """POST /internal/v1/batches/{id}/invalidate."""
        batch_id = batch_id_of(request)
        parsed = parsed_body(request, InvalidatedPhases)
        body = parsed.body
        rules = self.definitions.current
        phases = rules.phases
        unknown = [place for place, phase in enumerate(body.phases) if phase not in phases]
        if unknown:
            known = f"must be one of {', '.join(phases.known)}"
            raise InvalidBody(tuple(InvalidField(f"phases.{place}", known) for place in unknown))
        if len(body.phases) * len(body.essays or ()) > _MOST_FACTS:
            problem = f"the number of essays times the number of phases may be {_MOST_FACTS} at most"
            raise InvalidBody((InvalidField("essays", problem),))
        command = InvalidatePhases(
            batch_id=batch_id,
            phases=body.phases,
            essays=body.essays,
            reason=body.reason,
            dry_run=body.dry_run,
            correlation_id=correlation_id_of(request),
            caller=asked_by(request),
            trace=cause_of(request, span_of(request, self.tracer)),
        )
        try:
            invalidation = await self.invalidator.invalidate(command, rules.law)
        except UnknownEssays as error:
            raise InvalidBody(
                tuple(InvalidField(f"essays.{place}", NO_SUCH_ESSAY) for place in error.positions[:_ERRORS])
            ) from None
        if invalidation is None:
            raise unknown_batch()
        answer = _answer(batch_id, invalidation, dry_run=body.dry_run)
        if parsed.warnings:
            answer["warnings"] = parsed.warnings
        return reply_json(answer)


def _answer(batch_id: str, invalidation: Invalidation, *, dry_run: bool) -> answers.PhasesInvalidated:
    return {
        "batch_id": batch_id,
        "dry_run": dry_run,
        "phases": [_phase(taken_back) for taken_back in invalidation.phases],
        "no_longer_complete": list(invalidation.no_longer_complete),
    }


def _phase(taken_back: PhaseTakenBack) -> answers.TakenBack:
    outcomes = [OUTCOMES[mark.outcome] for _, mark in taken_back.marks]
    return {
        "phase": taken_back.phase,
        "at": format_timestamp(taken_back.at_us),
        "was_complete": taken_back.was_complete,
        "complete": taken_back.complete,
        "completed": outcomes.count("completed"),
        "failed": outcomes.count("failed"),
        "report": mark_document(taken_back.report),
        "outcome": ending_document(taken_back.outcome),
        "essays": [
            {"essay_id": essay_id, "outcome": OUTCOMES[mark.outcome], "at": format_timestamp(mark.at_us)}
            for essay_id, mark in taken_back.marks[:_LISTED]
        ],
    }
