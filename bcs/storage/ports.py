"""The interfaces of the stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bcs.domain.history import HistoryEntry
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable, Tombstone
from bcs.wire.published import OutboundMessage

REDIS, POSTGRESQL, MEMORY = "redis", "postgresql", "memory"
"""The names of the stores in answers."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Committed:
    """A delta is durable.

    :param conflicts: the number of attempts that failed because another writer was faster.
    :param fallback: True if every attempt failed for that reason. Facts were merged by the script then, and a summary
        was not stored.
    """

    conflicts: int = 0
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class ErasedCopy:
    """What was removed from a store.

    :param known: whether the store had facts of the batch.
    :param essays: how many essays the batch had there.
    :param summaries: how many stored summaries were removed.
    """

    known: bool = False
    essays: int = 0
    summaries: int = 0


@dataclass(frozen=True, slots=True)
class ErasedEntries:
    """What was removed from a queue.

    :param count: how many entries.
    :param unread: the keys of streams that were not read to their ends.
    """

    count: int = 0
    unread: tuple[str, ...] = ()


class BatchSource(Protocol):
    """Reads the state of batches. Each method raises `BatchErased` for an erased batch."""

    async def summary(self, batch_id: str, law: CompletionLaw | None = None) -> BatchSummary:
        """The progress of a batch; an unknown batch has an empty summary.

        :param law: decides which phases are complete; None for the law with which the source was made.
        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def state(self, batch_id: str) -> BatchState:
        """The complete state of a batch.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def partial_state(self, batch_id: str) -> BatchState:
        """The copy in the store, without the archive. The archive may have more facts.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...


class SnapshotSource(BatchSource, Protocol):
    """Reads batches for answers that must have no effect at all: nothing is written anywhere."""

    async def snapshot(self, batch_id: str) -> tuple[BatchState, int]:
        """The complete state of a batch, and its version; 0 for an unknown batch.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...


class StateStore(BatchSource, Protocol):
    """Stores the state of batches. A call may be repeated without harm, also when its outcome is unknown."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """Merge a delta into a batch's state, atomically, and renew the batch's time to live.

        After a cancellation the delta is merged completely or not at all.

        :raises StoreUnavailable: the delta may be merged or not.
        :raises TooManyEssays: only without an archive. The store must accept every fact that the archive has.
        :raises BatchErased: the batch was erased; nothing was merged.
        """
        ...

    async def is_erased(self, batch_id: str) -> bool:
        """True if the store has a tombstone of a batch.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def erasable(self, batch_id: str) -> ErasedCopy:
        """What `erase` would remove now; nothing is changed.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def erase(self, batch_id: str, tombstone: Tombstone) -> ErasedCopy:
        """Put a tombstone in the place of a batch: facts are refused from then on, for the time in the tombstone.

        A repetition removes what an interrupted call has left.

        :raises StoreUnavailable: the batch may be erased or not.
        """
        ...

    async def store_summary(self, batch_id: str, summary: BatchSummary, law: CompletionLaw | None = None) -> Committed:
        """Store a summary for other processes, if the batch still has its version.

        After a cancellation the summary is stored or not.

        :param law: the law of the summary; None for the law with which the store was made.

        :raises StoreUnavailable: the summary may be stored or not.
        """
        ...

    async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
        """Refuse essays for which the batch has no room, before anything is written anywhere.

        The store does not read the batch if the batch was small enough at the last call. So the store notices essays
        that another process has added one call later.

        :raises TooManyEssays: the batch would have too many essays.
        :raises StoreUnavailable: no answer.
        """
        ...

    def ensure_reachable(self) -> None:
        """Refuse at once, without a request, while the store is known to be unreachable.

        :raises StoreUnavailable: the store is unreachable.
        """
        ...

    def ensure_writable(self, batch_id: str) -> None:
        """Refuse at once, without a request, while the batch is known to be unreachable, or commits to be refused.

        :raises StoreUnavailable: the batch is unreachable, or its commits are refused.
        """
        ...

    def server_of(self, batch_id: str) -> str:
        """A name of the server that has a batch; the commits of batches on one server share round trips."""
        ...

    async def time_us(self, batch_id: str) -> int:
        """The time by the clock of the server that has a batch, in microseconds since 1970 UTC.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def ping(self) -> None:
        """Check that the store answers, and which commands it would refuse.

        :raises StoreUnavailable: no answer in time, or the store would refuse to be read.
        """
        ...

    @property
    def problem(self) -> str:
        """The known problem of a store that answers, found without a request; empty if there is none."""
        ...

    @property
    def partly_reachable(self) -> bool:
        """True if the problem concerns some batches, and the store answers for the others."""
        ...


class ArchivePort(Protocol):
    """What a state store needs of the archive."""

    @property
    def reachable(self) -> bool:
        """True if the archive answered the last request."""
        ...

    @property
    def identity(self) -> str | None:
        """Changes when the archive is created again or restored; None before the first contact."""
        ...

    async def state(self, batch_id: str) -> BatchState:
        """The state of a batch in the archive.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        """Merge states that come from another store, without a history.

        :raises StoreUnavailable: the states may be merged or not.
        :raises StoreRefused: the states can't be stored, now or later.
        """
        ...


class AnsweringArchive(Protocol):
    """An archive that can answer instead of the state store."""

    @property
    def postgres(self) -> ArchivePort:
        """The archive's tables."""
        ...

    def can_answer_for_redis(self, error: StoreUnavailable) -> bool:
        """True if the archive can answer after this failure of the state store."""
        ...


@dataclass(frozen=True, slots=True)
class Leased(Generic[T]):
    """An item of a queue that this process must deliver.

    :param entry_id: the id in its stream.
    :param stream: the key of the stream that has the item; empty in memory.
    """

    entry_id: str
    message: T
    stream: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """Where the item is; no two items of a queue have the same place."""
        return self.stream, self.entry_id


LeasedMessage = Leased[OutboundMessage]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The entries that wait in a queue.

    :param count: the number of entries, leased entries included.
    :param oldest_seconds: the time since the oldest entry was first added, also if it was requeued since; 0 if no entry
        waits.
    """

    count: int
    oldest_seconds: float


class OutboxWriter(Protocol):
    """Accepts messages that must reach Kafka."""

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        """Store messages; those with the same key all or none. When this returns, they are durable.

        To store the same messages again adds nothing twice. An announcement with the same `event_id` as one that was
        stored shortly before is not stored.

        :raises OutboxFull: none was stored.
        :raises StoreUnavailable: each may be stored or not.
        """
        ...

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """Store the messages of one batch, and their explanation for the archive if there is one, all or nothing.

        :raises OutboxFull: nothing was stored.
        :raises StoreUnavailable: both may be stored or not.
        """
        ...


class Outbox(OutboxWriter, Protocol):
    """Messages that must reach Kafka. An entry stays until it is acknowledged, whatever process dies before that.

    Where the outbox has several streams, a stream that can't be used holds up no other: what has to be changed in it is
    changed once it answers again. A call fails only if no stream can be used.
    """

    @property
    def failing(self) -> Mapping[str, StoreUnavailable]:
        """The keys of the streams that can't be used now, each with the reason."""
        ...

    async def lease(self, limit: int) -> list[LeasedMessage]:
        """Lease entries that are not leased yet, of each stream the oldest first."""
        ...

    async def resume(self, limit: int) -> list[LeasedMessage]:
        """Return the entries that this process leased and did not acknowledge, because its publisher died."""
        ...

    async def recover(self, idle_seconds: float, limit: int) -> list[LeasedMessage]:
        """Lease entries whose lease is so old that the process with the lease must have died."""
        ...

    async def ack(self, leased: Sequence[LeasedMessage]) -> None:
        """Delete entries that the broker has acknowledged."""
        ...

    async def requeue(self, leased: Sequence[LeasedMessage]) -> None:
        """Move leased entries back to the end of their stream."""
        ...

    async def park(self, leased: LeasedMessage, problem: str) -> None:
        """Set aside an entry that the broker will never accept, so that it blocks nothing and is not lost."""
        ...

    async def erase(self, batch_id: str, *, dry_run: bool, seconds: float) -> ErasedEntries:
        """Remove the dead letters of a batch, leased and parked ones included.

        :param dry_run: True to count them only.
        :param seconds: how long this may take.
        """
        ...

    async def backlog(self) -> int:
        """The number of entries that wait, leased entries included."""
        ...

    async def measure(self) -> Waiting:
        """Count the entries that wait, and measure the age of the oldest.

        :raises StoreUnavailable: no answer.
        """
        ...
