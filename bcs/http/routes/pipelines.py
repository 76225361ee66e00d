"""The two calls of the orchestrator: define a pipeline, and report a phase as complete."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from bcs.domain.facts import Outcome
from bcs.errors import BcsError, RequestRefused
from bcs.http import answers
from bcs.http.bodies import BODY
from bcs.http.guard import (
    BATCH_ID,
    CORRELATION_ID,
    DEAD_LETTER,
    asked_by,
    caller_of,
    correlation_id_of,
    correlation_id_sent,
)
from bcs.http.replies import reply_encoded, reply_json
from bcs.http.requests import (
    DEFINITIONS_HEADER,
    FAILURES_HEADER,
    FIRST_FAILURE_HEADER,
    BodyT,
    CompletePhase,
    DefinePipeline,
    InvalidBody,
    InvalidField,
    ParsedBody,
    PipelineAnswers,
    parse_body,
)
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.report_phase import PhaseReporter, ReportPhase
from bcs.usecases.resolve_pipeline import OriginalRequest, PipelineResolver, ResolvePipeline
from bcs.wire.dead_letters.encode import FAILURES, FIRST_FAILURE
from bcs.wire.tracing import trace_of


@dataclass(frozen=True, slots=True)
class PipelineHandlers:
    """The handlers of the orchestrator's routes."""

    resolver: PipelineResolver
    reporter: PhaseReporter
    definitions: ActiveDefinitions
    answers: PipelineAnswers = field(default_factory=PipelineAnswers, init=False)

    async def define(self, request: web.Request) -> web.Response:
        """POST /internal/v1/pipelines/define."""
        parsed = _parsed(request, DefinePipeline)
        body = parsed.body
        request[CORRELATION_ID], request[BATCH_ID] = body.correlation_id, body.batch_id
        command = ResolvePipeline(
            batch_id=body.batch_id,
            pipeline=body.requested_pipeline,
            correlation_id=body.correlation_id,
            prompt_attached=body.batch_metadata.prompt_attached if body.batch_metadata else None,
            caller=asked_by(request),
            quota_of=caller_of(request),
            trace=trace_of(request.headers),
        )
        try:
            resolution, source = await self.resolver.resolve(command)
        except BcsError as error:
            fails_again = not error.retryable and not isinstance(error, RequestRefused)
            if fails_again and await self.resolver.store_failure(command, error, _original(request, body)):
                request[DEAD_LETTER] = "written"
            raise
        encoded = self.answers.encode(body.batch_id, resolution, source, parsed.warnings)
        return reply_encoded(encoded, headers={DEFINITIONS_HEADER: str(resolution.definitions)})

    async def complete(self, request: web.Request) -> web.Response:
        """POST /internal/v1/phases/complete."""
        parsed = _parsed(request, CompletePhase)
        body = parsed.body
        request[BATCH_ID] = body.batch_id
        phases, warnings = self.definitions.current.phases, parsed.warnings
        if body.phase_name not in phases:
            raise InvalidBody((InvalidField("phase_name", f"must be one of {', '.join(phases.known)}"),))
        if not phases.knows(body.phase_name):
            warnings = [*warnings, "phase_name: this replica does not know the phase, and keeps the report"]
        command = ReportPhase(
            batch_id=body.batch_id,
            phase=body.phase_name,
            outcome=Outcome.COMPLETED if body.success else Outcome.FAILED,
            correlation_id=correlation_id_of(request),
            caller=asked_by(request),
            quota_of=caller_of(request),
        )
        await self.reporter.report(command)
        answer: answers.PhaseRecorded = {
            "status": "recorded",
            "batch_id": body.batch_id,
            "phase_name": body.phase_name,
        }
        if warnings:
            answer["warnings"] = warnings
        return reply_json(answer)


def _original(request: web.Request, body: DefinePipeline) -> OriginalRequest:
    failures = tuple(
        (name, request.headers[header].encode(errors="replace"))
        for name, header in ((FAILURES, FAILURES_HEADER), (FIRST_FAILURE, FIRST_FAILURE_HEADER))
        if header in request.headers
    )
    return OriginalRequest(
        body=request[BODY],
        used_fields=lambda: body.model_dump_json(exclude_none=True).encode(),
        failures=failures,
    )


def _parsed(request: web.Request, model: type[BodyT]) -> ParsedBody[BodyT]:
    try:
        parsed = parse_body(model, request[BODY], correlation_id_sent(request))
    except InvalidBody as error:
        if error.correlation_id is not None:
            request[CORRELATION_ID] = error.correlation_id
        if error.batch_id is not None:
            request[BATCH_ID] = error.batch_id
        raise
    if parsed.correlation_id is not None:
        request[CORRELATION_ID] = parsed.correlation_id
    request[BODY] = parsed.raw
    return parsed
