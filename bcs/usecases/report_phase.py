"""Report a phase of a batch as complete or failed: a person's word, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from bcs.actors.asking import ask_with_retry
from bcs.actors.clocks import Clocks
from bcs.actors.messages import ApplyFacts, Report
from bcs.domain.facts import Outcome, PhaseReported
from bcs.domain.reporting import report_time_us
from bcs.supervision import DynamicSupervisor
from bcs.usecases.batch_reader import BatchReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPhase:
    """A request to record that a phase has ended.

    :param phase: one that the platform or the configuration knows.
    :param caller: who reports, for the history.
    """

    batch_id: str
    phase: str
    outcome: Outcome
    correlation_id: str
    caller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReporter:
    """Gives a report a time that counts over all that is known, and has it recorded.

    :param batches: the actors of the batches.
    :param clocks: say when a report is made, and how far ahead of them it may be.
    :param new_id: makes ids of entries in the history.
    :param deadline_seconds: how long a batch's actor may take to record a fact.
    """

    reader: BatchReader
    batches: DynamicSupervisor[ApplyFacts]
    clocks: Clocks
    new_id: Callable[[], UUID]
    deadline_seconds: float

    async def report(self, command: ReportPhase) -> None:
        """Record a report. When this returns, the report is durable.

        Cancellation may leave the report recorded, though the caller gets no answer.

        :raises ReportOutdated: something is known of the phase whose time lies too far ahead.
        :raises StoreUnavailable: whether the report was recorded is unknown.
        """
        # A batch's actor would wait for the store together with what comes from Kafka; a caller is told at once.
        self.reader.store.ensure_writable()
        now_us = await self.clocks.agreed_now_us()
        # A large batch is in memory no longer than this takes.
        at_us = report_time_us(
            await self.reader.state_for_report(command.batch_id),
            command.phase,
            now_us=now_us,
            max_skew_us=self.clocks.max_skew_us,
        )
        fact = PhaseReported(command.phase, command.outcome, at_us)
        report = Report(self.new_id(), command.correlation_id, command.caller)
        # The fact keeps its time, so that to record it again after the actor died changes nothing.
        await ask_with_retry(
            lambda: self.batches.ask(
                command.batch_id,
                lambda reply: ApplyFacts(command.batch_id, (fact,), report=report, reply=reply),
                self.deadline_seconds,
            )
        )
