"""The two calls of the orchestrator: define a pipeline, and report a phase as complete."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Literal

from aiohttp import web

from bcs.domain.facts import Outcome
from bcs.domain.resolution import Resolution
from bcs.errors import BcsError, ReplayFailed, RequestRefused
from bcs.http import answers
from bcs.http.bodies import BODY
from bcs.http.documents import extent_of
from bcs.http.explanation_answers import ResolvedWithOptions
from bcs.http.explanations import answer_with_options, encoding_explained
from bcs.http.guard import (
    BATCH_ID,
    CORRELATION_ID,
    DEAD_LETTER,
    asked_by,
    caller_of,
    correlation_id_of,
    correlation_id_sent,
)
from bcs.http.identity import Scope
from bcs.http.parameters import PIPELINES, USUAL_ESSAYS, DefineQuery, explained_essays_path, parse_query
from bcs.http.replies import reply_encoded, reply_json
from bcs.http.requests import (
    DEFINITIONS_HEADER,
    FAILURES_HEADER,
    FIRST_FAILURE_HEADER,
    REPLAYED_FROM_HEADER,
    BodyT,
    CompletePhase,
    DefinePipeline,
    InvalidBody,
    InvalidField,
    ParsedBody,
    PipelineAnswers,
    parse_body,
)
from bcs.http.routing import OF_BODY, Group, Route, serves
from bcs.http.tracing import cause_of, span_of
from bcs.observability.tracing import Attributes, Tracer
from bcs.storage.pace import paced
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.report_phase import PhaseReporter, ReportPhase
from bcs.usecases.resolve_pipeline import OriginalRequest, PipelineResolver, ResolvePipeline
from bcs.wire.dead_letters.decode import DeadLetter, position_in
from bcs.wire.dead_letters.encode import FAILURES, FIRST_FAILURE
from bcs.wire.tracing import TRACEPARENT, TRACESTATE, TraceContext

DEFINITIONS_ANSWERED = {
    DEFINITIONS_HEADER: "The version of the pipeline file, if it has one, and the hash of its content, with a blank "
    "between."
}

Explain = bool | Literal["full"]

_TRACE = {
    TRACEPARENT: "W3C trace context. A valid one goes on into the announcements.",
    TRACESTATE: "W3C trace context; used only with a valid `traceparent`.",
}


@dataclass(frozen=True, slots=True)
class PipelineHandlers:
    """The handlers of the orchestrator's routes.

    :param page_bytes: the approximate size of a full explanation, for any number of essays.
    """

    resolver: PipelineResolver
    reporter: PhaseReporter
    definitions: ActiveDefinitions
    page_bytes: int
    tracer: Tracer
    plain_answers: PipelineAnswers = field(default_factory=PipelineAnswers, init=False)

    @serves(
        Route(
            method="POST",
            path=f"{PIPELINES}/define",
            name="definePipeline",
            span="resolve",
            group=Group.PIPELINES,
            summary="Say which phases of a pipeline a batch still needs",
            answers={HTTPStatus.OK: ResolvedWithOptions},
            problems=(
                *("unknown-pipeline", "prompt-required", "needed-phase-left-out", "batch-erased"),
                *("too-many-new-batches", "intake-behind", "unavailable"),
            ),
            scope=Scope.RESOLVE,
            body=DefinePipeline,
            query=DefineQuery,
            headers=_TRACE,
            answer_headers=DEFINITIONS_ANSWERED,
            leads_to={
                "showBatch": OF_BODY,
                "showHistory": OF_BODY,
                "explainPipeline": {**OF_BODY, "pipeline": "$request.body#/requested_pipeline"},
            },
        )
    )
    async def define(self, request: web.Request) -> web.Response:
        """POST /internal/v1/pipelines/define."""
        parsed = parsed_body(request, DefinePipeline)
        body = parsed.body
        request[CORRELATION_ID], request[BATCH_ID] = body.correlation_id, body.batch_id
        plain = body.plain and not request.query_string
        span = span_of(request, self.tracer)
        command = ResolvePipeline(
            batch_id=body.batch_id,
            pipeline=body.requested_pipeline,
            correlation_id=body.correlation_id,
            prompt_attached=body.batch_metadata.prompt_attached if body.batch_metadata else None,
            caller=asked_by(request),
            quota_of=caller_of(request),
            trace=cause_of(request, span),
            replay_of=position_in(request.headers.get(REPLAYED_FROM_HEADER, "")),
        )
        explain: Explain = False
        if not plain:
            explain = _explain(request, body)
            command = replace(
                command,
                options=body.options(),
                dry_run=bool(body.dry_run),
                explain=bool(explain),
                draft=body.draft(),
            )
        try:
            resolution, source, explanation = await self.resolver.resolve(command)
        except BcsError as error:
            fails_again = not error.retryable and not isinstance(error, RequestRefused) and not command.dry_run
            if fails_again and await self.resolver.store_failure(command, error, _original(request, body)):
                request[DEAD_LETTER] = "written"
            raise
        span.set(_about_resolution, resolution, source)
        headers = {DEFINITIONS_HEADER: str(resolution.definitions)}
        if plain:
            return reply_encoded(
                self.plain_answers.encode(body.batch_id, resolution, source, parsed.warnings), headers=headers
            )
        answer = answer_with_options(
            body.batch_id,
            resolution,
            source,
            options=command.options,
            dry_run=command.dry_run,
            warnings=parsed.warnings,
        )
        if explanation is None:
            return reply_json(answer, headers=headers)
        extent, next_after = None, None
        if explain == "full":
            extent = extent_of(None, USUAL_ESSAYS, page_bytes=self.page_bytes, phases=len(resolution.decisions))
            next_after = partial(explained_essays_path, body.batch_id, body.requested_pipeline, USUAL_ESSAYS)
        return reply_encoded(await paced(encoding_explained(answer, explanation, extent, next_after)), headers=headers)

    async def resolve_again(
        self, dead_letter: DeadLetter, raw: bytes, trace: TraceContext | None, *, caller: str, quota_of: str
    ) -> None:
        """Answer the request of a dead letter again.

        If it fails again, a new dead letter continues the count of failures, and this one counts as replayed.

        :param raw: the body of the request.
        :param trace: the context of the replay.
        :param caller: who replays, for the history.
        :raises ReplayFailed: there is no answer, and no new dead letter.
        """
        where = str(dead_letter.position)
        try:
            body = parse_body(DefinePipeline, raw).body
        except InvalidBody as error:
            raise ReplayFailed(where, f"the request is not valid: {error}") from error
        command = ResolvePipeline(
            batch_id=body.batch_id,
            pipeline=body.requested_pipeline,
            correlation_id=body.correlation_id,
            prompt_attached=body.batch_metadata.prompt_attached if body.batch_metadata else None,
            caller=caller,
            quota_of=quota_of,
            trace=trace,
            replay_of=dead_letter.position,
            options=body.options(),
        )
        try:
            await self.resolver.resolve(command)
        except BcsError as error:
            original = OriginalRequest(
                body=raw,
                used_fields=lambda: body.model_dump_json(exclude_none=True).encode(),
                failures=(
                    (FAILURES, str(dead_letter.failures).encode()),
                    (FIRST_FAILURE, dead_letter.first_failure.encode()),
                ),
            )
            fails_again = not error.retryable and not isinstance(error, RequestRefused)
            if not (fails_again and await self.resolver.store_failure(command, error, original)):
                raise ReplayFailed(where, str(error)) from error

    @serves(
        Route(
            method="POST",
            path="/internal/v1/phases/complete",
            name="completePhase",
            span="report",
            group=Group.PHASES,
            summary="Report a whole phase of a batch",
            answers={HTTPStatus.OK: answers.PhaseRecorded},
            problems=("report-outdated", "batch-erased", "too-many-new-batches", "unavailable"),
            scope=Scope.REPORT,
            body=CompletePhase,
            leads_to={"showBatch": OF_BODY, "showHistory": OF_BODY},
        )
    )
    async def complete(self, request: web.Request) -> web.Response:
        """POST /internal/v1/phases/complete."""
        parsed = parsed_body(request, CompletePhase)
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
            trace=cause_of(request, span_of(request, self.tracer)),
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


def _explain(request: web.Request, body: DefinePipeline) -> Explain:
    """How much the caller wants explained; the body counts before the query."""
    asked = parse_query(DefineQuery, request.query.items()).explain
    if body.explain is not None:
        return body.explain
    return "full" if asked == "full" else asked == "true"


def _about_resolution(resolution: Resolution, source: str) -> Attributes:
    return {
        "bcs.pipeline": resolution.pipeline,
        "bcs.source": source,
        "bcs.phases.run": [decision.phase for decision in resolution.decisions if decision.runs],
        "bcs.phases.pruned": list(resolution.pruned),
    }


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


def parsed_body(request: web.Request, model: type[BodyT]) -> ParsedBody[BodyT]:
    """The body of a request; its ids are noted for the log and the answer.

    :raises InvalidBody: the body is invalid.
    """
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
