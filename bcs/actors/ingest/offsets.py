"""Which offsets may be committed: only those with nothing unfinished before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field


@dataclass(slots=True)
class _Partition:
    """One ownership of a partition.

    :param began: where this ownership began to read: the offset that was committed before; None before the first.
    :param unfinished: offsets of what was read and is not yet durable, and of what is finished behind the first of
        them, in the order in which they were read.
    :param finished_ahead: offset to Kafka's time of messages behind an unfinished one.
    :param written_ms: Kafka's time of the last message before `committable`; None where it has none.
    :param next_offset: the one behind the last that was read; None before the first.
    """

    epoch: int
    _: KW_ONLY
    unfinished: dict[int, None] = field(default_factory=dict)
    finished_ahead: dict[int, int | None] = field(default_factory=dict)
    committable: int | None = None
    written_ms: int | None = None
    committed: int | None = None
    next_offset: int | None = None
    began: int | None = None


class OffsetTracker:
    """Follows every message from being read to being durable, for all partitions that this process owns.

    A partition that is taken away and given back starts anew under another epoch: what was unfinished is read again,
    and a token from before counts for nothing.

    :param epochs: numbers that no other tracker of this process gets, since tokens outlive their tracker.
    """

    def __init__(self, epochs: Iterator[int]) -> None:
        self._epochs = epochs
        self._partitions: dict[tuple[str, int], _Partition] = {}

    def assign(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Begin a new ownership of these partitions."""
        epoch = next(self._epochs)
        for key in partitions:
            self.revoke([key])
            self._partitions[key] = _Partition(epoch)

    def revoke(self, partitions: Iterable[tuple[str, int]]) -> None:
        """End the ownership of these partitions; what is unfinished there is dropped."""
        for key in partitions:
            self._partitions.pop(key, None)

    def epoch(self, topic: str, partition: int) -> int | None:
        """The epoch of the current ownership; None when there is none."""
        owned = self._partitions.get((topic, partition))
        return owned.epoch if owned else None

    def read(self, topic: str, partition: int, offset: int) -> None:
        """A message was read. Offsets rise, but need not be without gaps: Kafka leaves some out."""
        owned = self._partitions[topic, partition]
        owned.unfinished[offset] = None
        owned.next_offset = offset + 1
        if owned.began is None:
            owned.began = offset

    def passed(self, topic: str, partition: int, offset: int) -> None:
        """Kafka has nothing more to give before this offset; all that it gave was `read` before.

        Behind the last message can lie what nobody gets: markers of transactions, and messages of aborted ones.
        """
        owned = self._partitions.get((topic, partition))
        if owned is None:
            return
        if owned.began is None:
            owned.began = offset
        # The first time this is where the ownership began, or already behind what nobody gets: both may be committed.
        if owned.next_offset is None or offset > owned.next_offset:
            owned.next_offset = offset
            if offset and not owned.unfinished:
                owned.committable = offset

    def finish(self, topic: str, partition: int, offset: int, epoch: int, written_ms: int | None = None) -> None:
        """A message's effect is durable. Saying so twice, or of another epoch, changes nothing.

        :param written_ms: Kafka's time of it, in milliseconds since 1970 UTC, where it has one.
        """
        owned = self._partitions.get((topic, partition))
        if owned is None or owned.epoch != epoch or offset not in owned.unfinished or offset in owned.finished_ahead:
            return
        owned.finished_ahead[offset] = written_ms
        while owned.unfinished and (first := next(iter(owned.unfinished))) in owned.finished_ahead:
            del owned.unfinished[first]
            owned.written_ms = owned.finished_ahead.pop(first)
            owned.committable = first + 1
        if not owned.unfinished:
            owned.committable = owned.next_offset

    def to_commit(self) -> dict[tuple[str, int], int]:
        """For each partition that has moved on: the offset from which to read after a restart."""
        return {
            key: owned.committable
            for key, owned in self._partitions.items()
            if owned.committable is not None and owned.committable != owned.committed
        }

    def written_ms(self, topic: str, partition: int) -> int | None:
        """Kafka's time of the last message before the offset to commit, in milliseconds since 1970 UTC."""
        owned = self._partitions.get((topic, partition))
        return owned.written_ms if owned else None

    def committed(self, offsets: dict[tuple[str, int], int]) -> None:
        """These offsets were committed."""
        for key, offset in offsets.items():
            owned = self._partitions.get(key)
            if owned:
                owned.committed = offset

    def is_committed(self, topic: str, partition: int, offset: int) -> bool:
        """True if this message will not be read again, as far as is known."""
        owned = self._partitions.get((topic, partition))
        return owned is not None and offset < max(owned.committed or 0, owned.began or 0)

    def is_unfinished(self, topic: str, partition: int, offset: int) -> bool:
        """True if this message was read and is not yet durable."""
        owned = self._partitions.get((topic, partition))
        return owned is not None and offset in owned.unfinished and offset not in owned.finished_ahead

    def unfinished(self, partitions: Iterable[tuple[str, int]]) -> int:
        """How many messages of these partitions were read and are not yet durable."""
        return sum(
            len(owned.unfinished) - len(owned.finished_ahead)
            for key in partitions
            if (owned := self._partitions.get(key))
        )

    @property
    def in_flight(self) -> int:
        """How many messages were read and are not yet durable."""
        return self.unfinished(self._partitions)

    @property
    def remembered(self) -> int:
        """How many offsets are kept, finished ones behind an unfinished one included."""
        return sum(len(owned.unfinished) for owned in self._partitions.values())

    def position(self, topic: str, partition: int) -> int | None:
        """The first offset that is not yet durable; None before anything was read."""
        owned = self._partitions.get((topic, partition))
        if owned is None:
            return None
        return next(iter(owned.unfinished), owned.next_offset)
