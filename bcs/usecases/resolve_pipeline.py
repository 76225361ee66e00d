"""Resolve a pipeline: which of its phases does a batch still need?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from bcs.actors.dead_letters import DeadLetters
from bcs.actors.runtime import Runtime
from bcs.domain.history import PhaseDecided, PipelineResolved
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.resolution import Resolution, resolve, validate_request
from bcs.domain.times import microseconds
from bcs.errors import BcsError, PromptRequired, RequestRefused, StoreError, UnknownPipeline
from bcs.observability.failpoints import FailPoint, hit
from bcs.usecases.announcer import Announcer
from bcs.usecases.batch_reader import BatchReader
from bcs.wire.dead_letters.encode import earlier_failures, failed_resolution
from bcs.wire.published import Headers, phases_skipped
from bcs.wire.tracing import Trace

log = structlog.stdlib.get_logger("bcs.http", actor="http")

_REFUSALS: dict[type[RequestRefused], str] = {
    UnknownPipeline: "unknown_pipeline",
    PromptRequired: "prompt_required",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvePipeline:
    """A request to resolve a pipeline.

    :param prompt_attached: whether the batch has an essay prompt; None where the caller does not say.
    :param caller: who asks, for the history.
    :param trace: of the caller, carried on by what is published.
    """

    batch_id: str
    pipeline: str
    correlation_id: str
    prompt_attached: bool | None
    caller: str
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRequest:
    """The request as it came, for a dead letter.

    :param body: its bytes.
    :param used_fields: makes JSON of what counts in the body, for a body that is too large for a message.
    :param failures: headers that a replay gave the request: how often it failed before, and when first.
    """

    body: bytes
    used_fields: Callable[[], bytes]
    failures: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResolver:
    """Validates a request, reads the batch, resolves, announces what is pruned, and keeps the decision."""

    runtime: Runtime
    definitions: PipelineDefinitions
    reader: BatchReader
    announcer: Announcer
    dead_letters: DeadLetters

    async def resolve(self, command: ResolvePipeline) -> tuple[Resolution, str]:
        """Resolve a pipeline. When this returns, each pruned phase will be announced.

        Cancellation before the announcements are durable leaves nothing behind; after that they are published, though
        the caller gets no answer.

        :returns: the resolution, and where the batch was read.
        :raises RequestRefused: the pipeline is not known, or the batch lacks a prompt.
        :raises StoreError: no answer, and never a guess.
        """
        outcome = "failure"
        try:
            resolved = await self._resolve(command)
            outcome = "success"
        except RequestRefused as error:
            self.runtime.telemetry.refusals.labels(_REFUSALS[type(error)]).inc()
            raise
        finally:
            self.runtime.telemetry.resolutions(outcome).inc()
        return resolved

    async def store_failure(self, command: ResolvePipeline, error: BcsError, original: OriginalRequest) -> bool:
        """Make a dead letter of a request that failed on our side, and would fail again.

        :returns: False where the outbox did not take the dead letter, which is lost then, and logged.
        """
        message = failed_resolution(
            original.body,
            command.batch_id,
            command.pipeline,
            error,
            self.runtime.now(),
            earlier_failures(original.failures),
            used_fields=original.used_fields(),
        )
        try:
            await self.dead_letters.store([self.dead_letters.of_request(message)])
        except StoreError as problem:
            log.exception("dead_letter_lost", correlation_id=command.correlation_id, error=str(problem))
            return False
        return True

    async def _resolve(self, command: ResolvePipeline) -> tuple[Resolution, str]:
        validate_request(self.definitions, command.pipeline, prompt_attached=command.prompt_attached)
        summary, source = await self.reader.summary(command.batch_id)
        resolution = resolve(self.definitions, command.pipeline, summary)
        pruned, now = resolution.pruned, self.runtime.now()
        entry = self._entry(command, resolution, version=summary.version, source=source, now=now)
        if pruned:
            # Durable before the answer: once the caller knows of a pruning, it will be announced.
            skipped = phases_skipped(command.batch_id, pruned, command.correlation_id, now, command.trace)
            await self.announcer.announce(skipped, entry)
            await hit(FailPoint.HTTP_BEFORE_REPLY, command.batch_id)
            for phase in pruned:
                self.runtime.telemetry.phases_pruned(phase).inc()
        else:
            self.announcer.write_soon(entry)
        return resolution, source

    def _entry(
        self, command: ResolvePipeline, resolution: Resolution, *, version: int, source: str, now: datetime
    ) -> PipelineResolved:
        decisions = (
            PhaseDecided(one.phase, one.runs, one.reason.value, one.reason_text) for one in resolution.decisions
        )
        return PipelineResolved(
            self.runtime.new_id(),
            command.batch_id,
            microseconds(now),
            correlation_id=command.correlation_id,
            asked_by=command.caller,
            pipeline=resolution.pipeline,
            decisions=tuple(decisions),
            version=version,
            source=source,
            registered=resolution.registered,
        )
