"""Reads a batch from the state store, or from the archive while Redis is unreachable. Commands use it, too."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.pace import paced
from bcs.storage.ports import POSTGRESQL, AnsweringArchive, BatchSource, SnapshotSource


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReader:
    """Decides which store answers for a batch, and whether its copy is enough for an answer.

    `bcs.storage.backfill.ArchiveBackfill.complete` decides whether a copy in Redis is complete, and whether the copy is
    enough while the archive is unreachable.

    :param store_name: the name of the store in answers.
    :param archive: None if there is no archive.
    """

    store: BatchSource
    store_name: str
    archive: AnsweringArchive | None

    async def summary(self, batch_id: str, law: CompletionLaw) -> tuple[BatchSummary, str]:
        """The progress of the batch, and the name of the store that answered.

        :param law: decides which phases are complete. A reload replaces it, so that no reader has one of its own.
        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            return await self.store.summary(batch_id, law), self.store_name
        except StoreUnavailable as error:
            state = await _state_in(self.archive, batch_id, error)
            return await paced(summarizing(state, law, 0)), POSTGRESQL

    async def state(self, batch_id: str, law: CompletionLaw | None = None) -> tuple[BatchState, int | None, str]:
        """The state of the batch, its version if the store has it, and the name of the store that answered.

        :param law: the law of the summaries that others ask for now, which are cached. The state itself has no law.
        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            # The version is read first, so the state is never older than its version.
            summary = await self.store.summary(batch_id, law)
            return await self.store.state(batch_id), summary.version, self.store_name
        except StoreUnavailable as error:
            return await _state_in(self.archive, batch_id, error), None, POSTGRESQL

    async def facts(self, batch_id: str) -> BatchState:
        """The state of the batch alone. Unlike `state`, this leaves no summary in the store.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            return await self.store.state(batch_id)
        except StoreUnavailable as error:
            return await _state_in(self.archive, batch_id, error)

    async def state_for_report(self, batch_id: str) -> BatchState:
        """The state of the batch; while the archive is unreachable, only the copy in Redis.

        A phase report must be accepted then, too: the report adds a fact, and decides nothing.

        :raises StoreUnavailable: Redis gave no answer.
        """
        try:
            return await self.store.state(batch_id)
        except StoreUnavailable as error:
            if error.store != POSTGRESQL:
                raise
            return await self.store.partial_state(batch_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReader:
    """Reads whole batches for answers that must have no effect at all, by the rules of `BatchReader`.

    :param store_name: the name of the store in answers.
    :param archive: None if there is no archive.
    """

    source: SnapshotSource
    store_name: str
    archive: AnsweringArchive | None

    async def snapshot(self, batch_id: str) -> tuple[BatchState, int | None, str]:
        """The state of the batch, its version if the store has it, and the name of the store that answered.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        try:
            return *await self.source.snapshot(batch_id), self.store_name
        except StoreUnavailable as error:
            return await _state_in(self.archive, batch_id, error), None, POSTGRESQL


async def _state_in(archive: AnsweringArchive | None, batch_id: str, error: StoreUnavailable) -> BatchState:
    """The state of a batch in the archive, where it can answer instead of Redis.

    :param error: why Redis does not answer; raised where the archive can't answer, either.
    """
    if archive is None or not archive.can_answer_for_redis(error):
        raise error
    state = await archive.postgres.state(batch_id)
    if state.expected is None:
        # The batch may be older than the archive, or than its last rebuild: Redis may have more facts.
        raise error
    return state
