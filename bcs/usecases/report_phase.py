"""Stores a phase report: a caller over HTTP reports that a phase of a batch is complete or failed."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.actors.asking import ask_with_retry
from bcs.actors.clocks import Clocks
from bcs.actors.messages import ApplyFacts, BatchCommand, HttpSource
from bcs.actors.runtime import Runtime
from bcs.domain.facts import Outcome, PhaseReported
from bcs.domain.reporting import report_time_us
from bcs.storage.ports import StateStore
from bcs.supervision import DynamicSupervisor
from bcs.usecases.batch_reader import BatchReader
from bcs.usecases.new_batches import NewBatches
from bcs.wire.tracing import TraceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPhase:
    """A request to store that a phase has ended.

    :param phase: a phase of the platform or of the configuration.
    :param caller: the caller's name for the history.
    :param quota_of: the caller whose quota a new batch uses.
    :param trace: the context of the request.
    """

    batch_id: str
    phase: str
    outcome: Outcome
    correlation_id: str
    caller: str
    quota_of: str
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReporter:
    """Gives a phase report a time that supersedes all known facts of the phase, and stores the report.

    :param batches: the actors of the batches.
    :param clocks: give the time of a report, and limit how far ahead a report may be.
    """

    runtime: Runtime
    store: StateStore
    reader: BatchReader
    batches: DynamicSupervisor[BatchCommand]
    clocks: Clocks
    new_batches: NewBatches

    async def report(self, command: ReportPhase) -> None:
        """Store a report. When this returns, the report is durable.

        Cancellation may leave the report stored, though the caller gets no answer.

        :raises TooManyNewBatches: the batch is unknown, and the caller has used up its quota.
        :raises BatchErased: nothing about the batch is accepted.
        :raises ReportOutdated: a known fact of the phase has a time that lies too far ahead.
        :raises StoreUnavailable: the report may be stored or not.
        """
        # A batch's actor waits for the store, because events from Kafka need that. A caller gets the error at once.
        self.store.ensure_writable(command.batch_id)
        now_us = await self.clocks.agreed_now_us(command.batch_id)
        state = await self.reader.state_for_report(command.batch_id)
        if state.empty:
            self.new_batches.use_quota(command.quota_of)
        at_us = report_time_us(state, command.phase, now_us=now_us, max_skew_us=self.clocks.max_skew_us)
        del state  # a large state must not stay in memory while the report is stored
        fact = PhaseReported(command.phase, command.outcome, at_us)
        report = HttpSource(self.runtime.new_id(), command.correlation_id, command.caller, trace=command.trace)
        # Each attempt sends the same time, so a second attempt after the actor died changes nothing.
        await ask_with_retry(
            lambda: self.batches.ask(
                command.batch_id,
                lambda reply: ApplyFacts(command.batch_id, (fact,), source=report, reply=reply),
                self.runtime.settings.request_deadline_seconds,
            )
        )
