"""What the rest of BCS asks of a store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bcs.domain.history import HistoryEntry
from bcs.domain.progress import BatchSummary
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.wire.published import OutboundMessage

REDIS, POSTGRESQL, MEMORY = "redis", "postgresql", "memory"
"""Where a state was read, in answers."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Committed:
    """A delta is durable.

    :param conflicts: how many attempts lost against another writer.
    :param fallback: whether it was written register by register, because every attempt lost.
    """

    conflicts: int = 0
    fallback: bool = False


class BatchSource(Protocol):
    """Where the state of batches is read."""

    async def summary(self, batch_id: str) -> BatchSummary:
        """How far the batch is, by the law of the source; an unknown batch has an empty summary.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def state(self, batch_id: str) -> BatchState:
        """The complete state of a batch.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def partial_state(self, batch_id: str) -> BatchState:
        """The copy in the store itself, without the archive, which may have more.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...


class StateStore(BatchSource, Protocol):
    """The state of batches. Every method may be repeated without harm, also when its outcome is unknown."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """Merge a delta into a batch's state, atomically, and renew the batch's time to live.

        Cancellation leaves the delta either wholly merged or not at all.

        :raises StoreUnavailable: whether it was merged is unknown.
        :raises TooManyEssays: only where no record stands behind the store: what that has must come in.
        """
        ...

    async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
        """Refuse essays that would be too many, before anything is written anywhere.

        A store that saw that the batch is small enough does not ask. So it may be late to notice what another process
        has given the batch, by one call.

        :raises TooManyEssays: they are too many.
        :raises StoreUnavailable: no answer.
        """
        ...

    def ensure_reachable(self) -> None:
        """Refuse at once, without asking it, while the store is known to be away.

        :raises StoreUnavailable: it is.
        """
        ...

    def ensure_writable(self) -> None:
        """Refuse at once, without asking it, while the store is known to be away, or to refuse commits.

        :raises StoreUnavailable: it is, or does.
        """
        ...

    async def time_us(self) -> int:
        """The store's own time, in microseconds since 1970 UTC.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def ping(self) -> None:
        """Ask for a sign of life, and whether the store would take what may be asked of it.

        :raises StoreUnavailable: there was none in time, or the store would refuse to be read.
        """
        ...

    @property
    def problem(self) -> str:
        """What is wrong though the store answers, as far as is known without asking it; empty where nothing is."""
        ...


class ArchivePort(Protocol):
    """What a state store asks of the permanent record behind it."""

    @property
    def reachable(self) -> bool:
        """Whether it answered when it was last asked."""
        ...

    @property
    def identity(self) -> str | None:
        """What is another one once the record was made anew or restored; None before it was reached."""
        ...

    async def state(self, batch_id: str) -> BatchState:
        """Everything on record of a batch.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        """Merge what is known of batches from elsewhere, without a history.

        :raises StoreUnavailable: whether it was written is unknown.
        :raises StoreRefused: it can't be stored, now or later.
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
    """An item of a queue that this process is to deliver.

    :param entry_id: by which it is settled.
    """

    entry_id: str
    message: T


LeasedMessage = Leased[OutboundMessage]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a queue.

    :param count: leased entries included.
    :param oldest_seconds: for how long the oldest has waited, however often it was given back since; 0 where none does.
    """

    count: int
    oldest_seconds: float


class OutboxWriter(Protocol):
    """Where messages go that must reach Kafka."""

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        """Take messages in, all or none; they are durable when this returns.

        :raises OutboxFull: none was taken.
        :raises StoreUnavailable: whether they were taken is unknown.
        """
        ...

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """The same, and keep what explains them for the record, if there is one.

        :raises OutboxFull: none was taken.
        :raises StoreUnavailable: whether they were taken is unknown.
        """
        ...


class Outbox(OutboxWriter, Protocol):
    """Messages that must reach Kafka. An entry stays until it is settled, whoever dies in between."""

    async def lease(self, limit: int) -> list[LeasedMessage]:
        """Take entries that no one has leased yet, oldest first."""
        ...

    async def resume(self, limit: int) -> list[LeasedMessage]:
        """Take again what this process has leased and not settled, since its publisher died over it."""
        ...

    async def recover(self, idle_seconds: float, limit: int) -> list[LeasedMessage]:
        """Take over entries that were leased so long ago that their holder must have died."""
        ...

    async def ack(self, entry_ids: Sequence[str]) -> None:
        """The broker has acknowledged these: forget them."""
        ...

    async def requeue(self, leased: Sequence[LeasedMessage]) -> None:
        """Give entries back, to the end of the queue."""
        ...

    async def park(self, leased: LeasedMessage, problem: str) -> None:
        """Set aside an entry that the broker will never take, so that it blocks nothing and is not lost."""
        ...

    async def backlog(self) -> int:
        """How many entries wait, leased ones included."""
        ...

    async def measure(self) -> Waiting:
        """How many entries wait, and for how long the oldest has.

        :raises StoreUnavailable: no answer.
        """
        ...
