"""Resolves a pipeline: decides which of its phases a batch still needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from bcs.actors.dead_letters import DeadLetters
from bcs.actors.runtime import Runtime
from bcs.domain.history import PhaseDecided, PipelineResolved
from bcs.domain.resolution import Resolution, validate_request
from bcs.domain.times import microseconds
from bcs.errors import (
    BatchErased,
    BcsError,
    PromptRequired,
    RequestRefused,
    StoreError,
    TooManyNewBatches,
    UnknownPipeline,
)
from bcs.observability.failpoints import FailPoint, hit
from bcs.usecases.announcer import Announcer
from bcs.usecases.batch_reader import BatchReader
from bcs.usecases.kept_resolutions import KeptResolutions
from bcs.usecases.new_batches import NewBatches
from bcs.wire.dead_letters.encode import earlier_failures, failed_resolution
from bcs.wire.published import Headers, phases_skipped
from bcs.wire.tracing import Trace

log = structlog.stdlib.get_logger("bcs.http", actor="http")

_REFUSALS: dict[type[BcsError], str] = {
    TooManyNewBatches: "too_many_new_batches",
    UnknownPipeline: "unknown_pipeline",
    PromptRequired: "prompt_required",
    BatchErased: "batch_erased",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvePipeline:
    """A request to resolve a pipeline.

    :param prompt_attached: True if the batch has an essay prompt; None if the caller gives no value.
    :param caller: the caller's name for the history.
    :param quota_of: the caller whose quota a new batch uses.
    :param trace: the caller's trace; the published announcements belong to it.
    """

    batch_id: str
    pipeline: str
    correlation_id: str
    prompt_attached: bool | None
    caller: str
    quota_of: str
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRequest:
    """The request as it was received, for a dead letter.

    :param body: the bytes of the body.
    :param used_fields: returns the fields of the body that BCS uses, as JSON; replaces a body that is too large.
    :param failures: headers that a replay adds: the number of earlier failures, and the time of the first.
    """

    body: bytes
    used_fields: Callable[[], bytes]
    failures: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResolver:
    """Validates a request, reads the batch, resolves, announces the pruned phases, and stores the decision."""

    runtime: Runtime
    resolutions: KeptResolutions
    reader: BatchReader
    announcer: Announcer
    dead_letters: DeadLetters
    new_batches: NewBatches

    async def resolve(self, command: ResolvePipeline) -> tuple[Resolution, str]:
        """Resolve a pipeline. When this returns, each pruned phase will be announced.

        Cancellation before the announcements are durable leaves nothing behind. After that the announcements are
        published, though the caller gets no answer.

        :returns: the resolution, and the name of the store that answered.
        :raises RequestRefused: the pipeline is unknown, or the batch lacks a prompt, or was erased.
        :raises TooManyNewBatches: the batch is unknown, and the caller has used up its quota.
        :raises StoreError: no answer, and never a guess.
        """
        outcome = "failure"
        try:
            resolved = await self._resolve(command)
            outcome = "success"
        except (RequestRefused, TooManyNewBatches) as error:
            self.runtime.telemetry.refusals.labels(_REFUSALS[type(error)]).inc()
            raise
        finally:
            self.runtime.telemetry.resolutions(outcome).inc()
        return resolved

    async def store_failure(self, command: ResolvePipeline, error: BcsError, original: OriginalRequest) -> bool:
        """Store a dead letter of a request that failed inside BCS and would fail again.

        :returns: False if the outbox did not store the dead letter. Then the dead letter is lost, and the loss is
            logged.
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
        validate_request(self.resolutions.definitions, command.pipeline, prompt_attached=command.prompt_attached)
        summary, source = await self.reader.summary(command.batch_id)
        if summary.unknown:
            self.new_batches.use_quota(command.quota_of)
        resolution = self.resolutions.resolve(command.pipeline, summary)
        pruned = resolution.pruned
        if not pruned and not self.announcer.explains:
            return resolution, source
        now = self.runtime.now()
        entry = None
        if self.announcer.explains:
            entry = self._entry(command, resolution, version=summary.version, source=source, now=now)
        if pruned:
            # Durable before the answer: every pruning that a caller has seen is announced.
            skipped = phases_skipped(command.batch_id, pruned, command.correlation_id, now, command.trace)
            await self.announcer.announce(skipped, entry)
            await hit(FailPoint.HTTP_BEFORE_REPLY, command.batch_id)
            for phase in pruned:
                self.runtime.telemetry.phases_pruned(phase).inc()
        elif entry:
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
