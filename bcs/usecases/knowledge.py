"""What is known of a batch, and the way to announce what was pruned: Redis, or the record while that is away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bcs.actors.archive.writer import Archive
from bcs.domain.history import PipelineResolved
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.pace import paced
from bcs.storage.permanent import Permanent
from bcs.storage.ports import POSTGRESQL, OutboxEntrance, StateStore
from bcs.wire.published import OutboundMessage


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the HTTP calls know.

    :param store_name: what the store is called in answers.
    :param law: what is known only to the record is judged by; the store has it already.
    :param permanent: None where there is no permanent record.
    """

    store: StateStore
    store_name: str
    outbox: OutboxEntrance
    permanent: Permanent | None
    archive: Archive | None
    law: CompletionLaw = field(kw_only=True)

    async def summary(self, batch_id: str) -> tuple[BatchSummary, str]:
        """How far the batch is, and who knew it.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            return await self.store.summary(batch_id), self.store_name
        except StoreUnavailable as error:
            if self.permanent is None or not self.permanent.stands_in(error):
                raise
            state = await self._from_the_record(batch_id, error)
            return await paced(summarizing(state, self.law, 0)), POSTGRESQL

    async def state(self, batch_id: str) -> tuple[BatchState, int | None, str]:
        """Everything known of the batch, its version where the store had it, and who had it.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            # In this order the state has at least what the version counts.
            summary = await self.store.summary(batch_id)
            return await self.store.state(batch_id), summary.version, self.store_name
        except StoreUnavailable as error:
            if self.permanent is None or not self.permanent.stands_in(error):
                raise
            return await self._from_the_record(batch_id, error), None, POSTGRESQL

    async def _from_the_record(self, batch_id: str, error: StoreUnavailable) -> BatchState:
        assert self.permanent is not None  # noqa: S101 (it was asked whether it stands in)
        state = await self.permanent.record.state(batch_id)
        if state.expected is None:
            # It may have begun before there was a record, or while that was made anew: Redis may know more of it.
            raise error
        return state

    async def announce(self, messages: Sequence[OutboundMessage], resolved: PipelineResolved) -> None:
        """Have it announced what was pruned, and kept why. When this returns, both are durable.

        :raises OutboxFull: neither was taken.
        :raises StoreUnavailable: whether it was is unknown.
        """
        if resolved.source != POSTGRESQL:
            try:
                await self.outbox.announce(messages, resolved)
            except StoreUnavailable as error:
                if self.permanent is None or not self.permanent.stands_in(error):
                    raise
            else:
                if self.archive:
                    self.archive.rouse()
                return
        assert self.permanent is not None  # noqa: S101 (nobody else is called that)
        await self.permanent.record.keep(messages, resolved)

    def note(self, resolved: PipelineResolved) -> None:
        """Have it kept what was answered where nothing was pruned."""
        if self.archive:
            self.archive.note(resolved)
