"""Resolves a pipeline: decides which of its phases a batch still needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from bcs.actors.dead_letters import DeadLetters
from bcs.actors.runtime import Runtime
from bcs.domain.dead_lettered import entry_about
from bcs.domain.history import PhaseDecided, PipelineResolved, Position
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import BatchSummary
from bcs.domain.resolution import Resolution, resolve, validate_request
from bcs.domain.resolve_options import PLAIN, ResolveOptions
from bcs.domain.times import microseconds
from bcs.errors import (
    BatchErased,
    BcsError,
    IntakeBehind,
    NeededPhasesLeftOut,
    PromptRequired,
    RequestRefused,
    StoreError,
    TooManyNewBatches,
    UnknownPhases,
    UnknownPipeline,
)
from bcs.observability.failpoints import FailPoint, hit
from bcs.usecases.active_definitions import ActiveDefinitions, Rules
from bcs.usecases.announcer import Announcer
from bcs.usecases.batch_reader import BatchReader
from bcs.usecases.explain_pipeline import Explanation, PipelineExplainer
from bcs.usecases.new_batches import NewBatches
from bcs.wire.dead_letters.decode import DeadLetterPosition
from bcs.wire.dead_letters.encode import RESOLUTION_FAILED, earlier_failures, failed_resolution
from bcs.wire.published import Headers, phases_skipped
from bcs.wire.tracing import TraceContext

log = structlog.stdlib.get_logger("bcs.http", actor="http")

_REFUSALS: dict[type[BcsError], str] = {
    TooManyNewBatches: "too_many_new_batches",
    UnknownPipeline: "unknown_pipeline",
    PromptRequired: "prompt_required",
    UnknownPhases: "unknown_phases",
    NeededPhasesLeftOut: "needed_phases_left_out",
    IntakeBehind: "intake_behind",
    BatchErased: "batch_erased",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvePipeline:
    """A request to resolve a pipeline.

    :param prompt_attached: True if the batch has an essay prompt; None if the caller gives no value.
    :param caller: the caller's name for the history.
    :param quota_of: the caller whose quota a new batch uses.
    :param trace: the context of the request; the published announcements belong to its trace. None without one.
    :param options: what the caller forces, leaves out or assumes.
    :param dry_run: True to answer without any effect.
    :param explain: True to explain each phase.
    :param draft: definitions that replace those of the service, only for a dry run; None without a draft.
    :param replay_of: the dead letter that has this request; None for a request of its own.
    """

    batch_id: str
    pipeline: str
    correlation_id: str
    prompt_attached: bool | None
    caller: str
    quota_of: str
    trace: TraceContext | None
    options: ResolveOptions = PLAIN
    dry_run: bool = False
    explain: bool = False
    draft: PipelineDefinitions | None = None
    replay_of: DeadLetterPosition | None = None


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
    """Validates a request, reads the batch, resolves, announces the pruned phases, and stores the decision.

    :param explainer: answers where the caller wants an explanation, or an answer without any effect.
    """

    runtime: Runtime
    definitions: ActiveDefinitions
    reader: BatchReader
    explainer: PipelineExplainer
    announcer: Announcer
    dead_letters: DeadLetters
    new_batches: NewBatches

    async def resolve(self, command: ResolvePipeline) -> tuple[Resolution, str, Explanation | None]:
        """Resolve a pipeline. When this returns, each pruned phase will be announced.

        Cancellation before the announcements are durable leaves nothing behind. After that the announcements are
        published, though the caller gets no answer.

        :returns: the resolution, the name of the store that answered, and the explanation if the caller wants one.
        :raises RequestRefused: the pipeline is unknown, the batch lacks a prompt or was erased, or an option allows no
            answer.
        :raises IntakeBehind: too many events wait to be read.
        :raises TooManyNewBatches: the batch is unknown, and the caller has used up its quota.
        :raises StoreError: no answer, and never a guess.
        """
        if command.replay_of is not None and not command.dry_run:
            at = Position(command.replay_of.topic, command.replay_of.partition, command.replay_of.offset)
            self.dead_letters.note_request_replay(command.batch_id, command.correlation_id, at, command.caller)
        outcome = "failure"
        try:
            resolved = await self._resolve(command)
            outcome = "success"
            if not command.dry_run:
                self.runtime.telemetry.answers(resolved[1]).inc()
        except (RequestRefused, TooManyNewBatches, IntakeBehind) as error:
            self.runtime.telemetry.refusals.labels(_REFUSALS[type(error)]).inc()
            raise
        finally:
            if not command.dry_run:
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
            trace=command.trace,
        )
        entry = entry_about(
            command.batch_id,
            microseconds(self.runtime.now()),
            entry_id=self.runtime.new_id(),
            correlation_id=command.correlation_id,
            reason=f"{RESOLUTION_FAILED}: {error}",
            asked_by=command.caller,
        )
        try:
            await self.dead_letters.store([self.dead_letters.of_request(message, entry)])
        except StoreError as problem:
            log.exception("dead_letter_lost", correlation_id=command.correlation_id, error=str(problem))
            return False
        return True

    async def _resolve(self, command: ResolvePipeline) -> tuple[Resolution, str, Explanation | None]:
        rules = self.definitions.current  # once, because a reload may replace them while the batch is read
        definitions = command.draft or rules.definitions
        validate_request(
            definitions, command.pipeline, prompt_attached=command.prompt_attached, options=command.options
        )
        if self.runtime.settings.max_intake_lag_seconds is not None:
            self._check_intake(self.runtime.settings.max_intake_lag_seconds)
        explanation = None
        if command.dry_run or command.explain:
            work = self.explainer.explain if command.explain else self.explainer.resolve
            explanation = await work(definitions, command.batch_id, command.pipeline, command.options)
            resolution, source, version = explanation.resolution, explanation.source, explanation.version or 0
            unknown = explanation.state.empty
        else:
            summary, source = await self.reader.summary(command.batch_id, rules.law)
            unknown, version = summary.unknown, summary.version
            resolution = _decide(rules, command, summary)
        if not command.dry_run:
            if unknown:
                self.new_batches.use_quota(command.quota_of)
            await self._announce(command, resolution, version=version, source=source)
        return resolution, source, explanation if command.explain else None

    def _check_intake(self, most_seconds: float) -> None:
        lag = self.explainer.lag()
        if lag.seconds is None or lag.seconds > most_seconds:
            raise IntakeBehind(lag.events, lag.seconds, most_seconds)

    async def _announce(self, command: ResolvePipeline, resolution: Resolution, *, version: int, source: str) -> None:
        """Announce the pruned phases, and store the decision."""
        pruned = resolution.pruned
        if command.options.force:
            forced = [decision.phase for decision in resolution.decisions if decision.forced]
            log.info(
                "phases_forced",
                batch_id=command.batch_id,
                pipeline=command.pipeline,
                phases=forced,
                requested_by=command.caller,
                correlation_id=command.correlation_id,
            )
        if not pruned and not self.announcer.explains:
            return
        now = self.runtime.now()
        entry = None
        if self.announcer.explains:
            entry = self._entry(command, resolution, version=version, source=source, now=now)
        if pruned:
            # Durable before the answer: every pruning that a caller has seen is announced.
            skipped = phases_skipped(command.batch_id, pruned, command.correlation_id, now, command.trace)
            await self.announcer.announce(skipped, entry)
            await hit(FailPoint.HTTP_BEFORE_REPLY, command.batch_id)
            for phase in pruned:
                self.runtime.telemetry.phases_pruned(phase).inc()
        elif entry:
            self.announcer.write_soon(entry)

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
            options=command.options,
            definitions=resolution.definitions,
            traceparent=command.trace.traceparent if command.trace else None,
        )


def _decide(rules: Rules, command: ResolvePipeline, summary: BatchSummary) -> Resolution:
    if command.options is PLAIN:
        return rules.resolutions.resolve(command.pipeline, summary)
    return resolve(rules.definitions, command.pipeline, summary, command.options)
