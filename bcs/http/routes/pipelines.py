"""The two calls of the orchestrator: define a pipeline, and report a phase as complete."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from aiohttp import web

from bcs.actors.asking import ask_again
from bcs.actors.clocks import Clocks
from bcs.actors.messages import RecordFacts, Report
from bcs.domain.facts import Outcome, PhaseReported
from bcs.domain.history import PhaseDecided, PipelineResolved
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.reporting import report_time_us
from bcs.domain.resolution import Resolution, admit, resolve
from bcs.domain.state import BatchState
from bcs.errors import BcsError, PromptRequired, RequestRefused, StoreError, StoreUnavailable, UnknownPipeline
from bcs.http.bodies import BODY
from bcs.http.guard import (
    BATCH_ID,
    CORRELATION_ID,
    DEAD_LETTER,
    asked_by,
    correlation_id_of,
    correlation_id_said,
)
from bcs.http.replies import reply_json
from bcs.http.requests import (
    FAILURES_SAID,
    FIRST_FAILURE_SAID,
    BodyT,
    CompletePhase,
    DefinePipeline,
    InvalidBody,
    InvalidField,
    ParsedBody,
    parse_body,
    pipeline_answer,
)
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.storage.ports import OutboxEntrance, StateStore
from bcs.supervision import DynamicSupervisor
from bcs.usecases.knowledge import Knowledge
from bcs.wire import topics
from bcs.wire.dead_letters.encode import FAILURES, FIRST_FAILURE, RESOLUTION_FAILED, earlier_failures, failed_resolution
from bcs.wire.decoding import microseconds
from bcs.wire.published import phases_skipped
from bcs.wire.tracing import Trace, trace_of

log = structlog.stdlib.get_logger("bcs.http", actor="http")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCalls:
    """Handlers with what they need.

    :param phases: the phase names that a caller may report on.
    :param now: wall-clock time.
    :param new_id: makes ids of entries in the history.
    :param deadline_seconds: how long a batch's actor may take to record a fact.
    :param clocks: say when a report is made, and how far ahead of them it may be.
    """

    definitions: PipelineDefinitions
    phases: Collection[str]
    store: StateStore
    outbox: OutboxEntrance
    knowledge: Knowledge
    batches: DynamicSupervisor[RecordFacts]
    telemetry: Telemetry
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]
    deadline_seconds: float
    clocks: Clocks

    async def define(self, request: web.Request) -> web.Response:
        """POST /internal/v1/pipelines/define."""
        parsed = _parsed(request, DefinePipeline)
        body = parsed.body
        request[CORRELATION_ID], request[BATCH_ID] = body.correlation_id, body.batch_id
        outcome = "failure"
        try:
            resolution, source = await self._resolve(body, asked_by(request), trace_of(request.headers))
            outcome = "success"
        except RequestRefused as error:
            self.telemetry.refusals.labels(_REFUSALS[type(error)]).inc()
            raise
        except BcsError as error:
            if not error.retryable:
                await self._bury(request, body, error)
            raise
        finally:
            self.telemetry.resolutions(outcome).inc()
        answer = {**pipeline_answer(body.batch_id, resolution), "source": source}
        return reply_json(_warned(answer, parsed.warnings))

    async def complete(self, request: web.Request) -> web.Response:
        """POST /internal/v1/phases/complete."""
        parsed = _parsed(request, CompletePhase)
        body = parsed.body
        request[BATCH_ID] = body.batch_id
        if body.phase_name not in self.phases:
            raise InvalidBody((InvalidField("phase_name", f"must be one of {', '.join(sorted(self.phases))}"),))
        # A batch's actor would wait for the store together with what comes from Kafka; a caller is told at once.
        self.store.ensure_writable()
        outcome = Outcome.COMPLETED if body.success else Outcome.FAILED
        now_us = await self.clocks.agreed_now_us()
        # A person's word counts over all that is known, whatever times that has. A large batch is in memory no longer.
        at_us = report_time_us(
            await self._known(body.batch_id), body.phase_name, now_us=now_us, max_skew_us=self.clocks.max_skew_us
        )
        fact = PhaseReported(body.phase_name, outcome, at_us)
        report = Report(self.new_id(), correlation_id_of(request), asked_by(request))
        # The fact keeps its time, so that to record it again after the actor died changes nothing.
        await ask_again(
            lambda: self.batches.ask(
                body.batch_id,
                lambda reply: RecordFacts(body.batch_id, (fact,), report=report, reply=reply),
                self.deadline_seconds,
            )
        )
        answer = {"status": "recorded", "batch_id": body.batch_id, "phase_name": body.phase_name}
        return reply_json(_warned(answer, parsed.warnings))

    async def _known(self, batch_id: str) -> BatchState:
        """What is known of a batch; only what Redis has of it while the record is away, which must refuse no report."""
        try:
            return await self.store.state(batch_id)
        except StoreUnavailable as error:
            if error.store != "postgresql":
                raise
            return await self.store.partial_state(batch_id)

    async def _resolve(self, body: DefinePipeline, caller: str, trace: Trace) -> tuple[Resolution, str]:
        prompt_attached = body.batch_metadata.prompt_attached if body.batch_metadata else None
        admit(self.definitions, body.requested_pipeline, prompt_attached=prompt_attached)
        summary, source = await self.knowledge.summary(body.batch_id)
        resolution = resolve(self.definitions, body.requested_pipeline, summary)
        pruned, now = resolution.pruned, self.now()
        resolved = self._explanation(body, resolution, summary.version, source, caller, now)
        if pruned:
            # Durable before the answer: once the caller knows of a pruning, it will be announced.
            skipped = phases_skipped(body.batch_id, pruned, body.correlation_id, now, trace)
            await self.knowledge.announce(skipped, resolved)
            await hit(FailPoint.HTTP_BEFORE_REPLY, body.batch_id)
            for phase in pruned:
                self.telemetry.phases_pruned(phase).inc()
        else:
            self.knowledge.note(resolved)
        return resolution, source

    def _explanation(
        self, body: DefinePipeline, resolution: Resolution, version: int, source: str, caller: str, now: datetime
    ) -> PipelineResolved:
        return PipelineResolved(
            self.new_id(),
            body.batch_id,
            microseconds(now),
            correlation_id=body.correlation_id,
            asked_by=caller,
            pipeline=resolution.pipeline,
            decisions=tuple(
                PhaseDecided(one.phase, one.runs, one.reason.value, one.because) for one in resolution.decisions
            ),
            version=version,
            source=source,
            registered=resolution.registered,
        )

    async def _bury(self, request: web.Request, body: DefinePipeline, error: BcsError) -> None:
        """A resolution that failed on our side, and would fail again, becomes a dead letter for someone to look at."""
        said = tuple(
            (name, request.headers[header].encode(errors="replace"))
            for name, header in ((FAILURES, FAILURES_SAID), (FIRST_FAILURE, FIRST_FAILURE_SAID))
            if header in request.headers
        )
        raw = request[BODY]
        letter = failed_resolution(
            raw,
            body.batch_id,
            body.requested_pipeline,
            error,
            self.now(),
            earlier_failures(said),
            understood=body.model_dump_json(exclude_none=True).encode(),
        )
        try:
            await self.outbox.append([letter])
        except StoreError as problem:
            log.exception("dead_letter_lost", correlation_id=body.correlation_id, error=str(problem))
            return
        request[DEAD_LETTER] = "written"
        self.telemetry.dead_letters.labels(topics.RESOLUTION, RESOLUTION_FAILED).inc()


_REFUSALS: dict[type[RequestRefused], str] = {
    UnknownPipeline: "unknown_pipeline",
    PromptRequired: "prompt_required",
}


def _parsed(request: web.Request, model: type[BodyT]) -> ParsedBody[BodyT]:
    try:
        parsed = parse_body(model, request[BODY], correlation_id_said(request))
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


def _warned(answer: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    return {**answer, "warnings": warnings} if warnings else answer
