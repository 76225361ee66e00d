"""Reads what is known of a batch: from the state store, or from the archive while Redis is away."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.archive import Archive
from bcs.storage.pace import paced
from bcs.storage.ports import POSTGRESQL, StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReader:
    """Decides who answers for a batch, and whether what they know is enough for an answer.

    :param store_name: what the store is called in answers.
    :param archive: None where there is no archive.
    :param law: judges what only the archive knows; the store has it already.
    """

    store: StateStore
    store_name: str
    archive: Archive | None
    law: CompletionLaw

    async def summary(self, batch_id: str) -> tuple[BatchSummary, str]:
        """How far the batch is, and who knew it.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            return await self.store.summary(batch_id), self.store_name
        except StoreUnavailable as error:
            if self.archive is None or not self.archive.can_answer_for_redis(error):
                raise
            state = await self._from_the_archive(batch_id, error)
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
            if self.archive is None or not self.archive.can_answer_for_redis(error):
                raise
            return await self._from_the_archive(batch_id, error), None, POSTGRESQL

    async def state_for_report(self, batch_id: str) -> BatchState:
        """Everything known of the batch; while the archive is away, only what Redis has.

        A report must be accepted in that case too: it adds a fact, and decides nothing.

        :raises StoreUnavailable: Redis gave no answer.
        """
        try:
            return await self.store.state(batch_id)
        except StoreUnavailable as error:
            if error.store != POSTGRESQL:
                raise
            return await self.store.partial_state(batch_id)

    async def _from_the_archive(self, batch_id: str, error: StoreUnavailable) -> BatchState:
        assert self.archive is not None  # noqa: S101 (`can_answer_for_redis` was asked)
        state = await self.archive.postgres.state(batch_id)
        if state.expected is None:
            # The batch may have begun before the archive, or while it was made anew: Redis may know more of the batch.
            raise error
        return state
