"""Takes completions of a batch back: an operator says that phases, or some essays in them, are to run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import structlog

from bcs.actors.asking import ask_with_retry
from bcs.actors.clocks import Clocks
from bcs.actors.messages import ApplyFacts, BatchCommand, HttpSource
from bcs.actors.runtime import Runtime
from bcs.domain.history import INVALIDATED
from bcs.domain.invalidation import Invalidation, invalidating
from bcs.domain.law import CompletionLaw
from bcs.errors import UnknownEssays
from bcs.storage.pace import paced
from bcs.storage.ports import StateStore
from bcs.supervision import DynamicSupervisor
from bcs.usecases.batch_reader import BatchReader
from bcs.wire.tracing import TraceContext

log = structlog.stdlib.get_logger("bcs.http", actor="http")


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidatePhases:
    """A request to take completions back.

    :param phases: phases of the platform or of the configuration, each once.
    :param essays: only these essays; None for all essays of the batch.
    :param reason: the operator's reason, for the history.
    :param dry_run: True to change nothing.
    :param caller: the caller's name for the history.
    :param trace: the context of the request.
    """

    batch_id: str
    phases: Sequence[str]
    essays: Sequence[str] | None
    reason: str
    dry_run: bool
    correlation_id: str
    caller: str
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseInvalidator:
    """Gives an invalidation times that are later than all that it takes back, and stores it.

    :param batches: the actors of the batches.
    :param clocks: give the time of an invalidation, and limit how far ahead it may be.
    :param reading: limits the number of batches that are in memory at the same time.
    """

    runtime: Runtime
    store: StateStore
    reader: BatchReader
    batches: DynamicSupervisor[BatchCommand]
    clocks: Clocks
    reading: anyio.Semaphore

    async def invalidate(self, command: InvalidatePhases, law: CompletionLaw) -> Invalidation | None:
        """Take completions back. When this returns, the invalidation is durable, unless it is a dry run.

        A completion that arrives meanwhile may be taken back, too, without being in the result. Cancellation may leave
        the invalidation stored, though the caller gets no answer.

        :param law: decides which phases were complete, and are complete afterwards.
        :returns: what is taken back; None if the batch is unknown.
        :raises UnknownEssays: the batch does not have some of the named essays.
        :raises InvalidationOutdated: a known fact of a phase has a time that lies too far ahead.
        :raises StoreUnavailable: the invalidation may be stored or not.
        """
        if not command.dry_run:
            # A batch's actor waits for the store. A caller gets the error at once.
            self.store.ensure_writable(command.batch_id)
        async with self.reading:
            invalidation = await self._plan(command, law)
        if invalidation is None or command.dry_run:
            return invalidation
        source = HttpSource(
            self.runtime.new_id(),
            command.correlation_id,
            command.caller,
            event_type=INVALIDATED,
            reason=command.reason,
            trace=command.trace,
        )
        # Each attempt sends the same times, so a second attempt after the actor died changes nothing.
        await ask_with_retry(
            lambda: self.batches.ask(
                command.batch_id,
                lambda reply: ApplyFacts(command.batch_id, invalidation.facts, source=source, reply=reply),
                self.runtime.settings.request_deadline_seconds,
            )
        )
        for taken_back in invalidation.phases:
            self.runtime.telemetry.phases_invalidated(taken_back.phase).inc()
        log.warning(
            "phases_invalidated",
            batch_id=command.batch_id,
            phases=list(command.phases),
            essays=None if command.essays is None else len(command.essays),
            no_longer_complete=list(invalidation.no_longer_complete),
            reason=command.reason,
            requested_by=command.caller,
            correlation_id=command.correlation_id,
        )
        return invalidation

    async def _plan(self, command: InvalidatePhases, law: CompletionLaw) -> Invalidation | None:
        state = await self.reader.facts(command.batch_id)
        if state.empty:
            return None
        if command.essays is not None:
            # A mistyped id must not look like a success. Late events about essays bring their own times.
            known = state.first_seen_us
            unknown = tuple(place for place, essay_id in enumerate(command.essays) if essay_id not in known)
            if unknown:
                raise UnknownEssays(unknown)
        now_us = await self.clocks.agreed_now_us(command.batch_id)
        essays = None if command.essays is None else list(dict.fromkeys(command.essays))
        calculation = invalidating(
            state,
            law,
            dict.fromkeys(command.phases),
            essays,
            now_us=now_us,
            max_skew_us=self.clocks.max_skew_us,
        )
        return await paced(calculation)
