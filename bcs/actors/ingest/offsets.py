"""Tracks which offsets may be committed: those without an unfinished message before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field


@dataclass(slots=True)
class _Partition:
    """One ownership of a partition.

    :param start_offset: the first offset of this ownership: the committed offset, or where a new group begins; None
        before the first read.
    :param read: the offsets of unfinished messages, and of finished messages behind the first of them, in the order in
        which they were read.
    :param unfinished: the unfinished messages among `read`.
    :param finished_ahead: the finished messages among `read`: offset to Kafka's timestamp.
    :param written_ms: Kafka's timestamp of the last message before `committable`; None if that message has none.
    :param next_offset: the offset after the last message that was read; None before the first read.
    """

    epoch: int
    _: KW_ONLY
    read: deque[int] = field(default_factory=deque)
    unfinished: set[int] = field(default_factory=set)
    finished_ahead: dict[int, int | None] = field(default_factory=dict)
    committable: int | None = None
    written_ms: int | None = None
    committed: int | None = None
    next_offset: int | None = None
    start_offset: int | None = None


class OffsetTracker:
    """Tracks every message from its read until it is durable, for all partitions that this process owns.

    When a partition is revoked and assigned again, it gets a new epoch: unfinished messages are read again, and tokens
    of an older epoch are ignored.

    :param epochs: numbers that no other tracker of this process gets, because tokens outlive their tracker.
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
        """End the ownership of these partitions, and drop their unfinished messages."""
        for key in partitions:
            self._partitions.pop(key, None)

    def epoch(self, topic: str, partition: int) -> int | None:
        """The epoch of the current ownership; None without an ownership."""
        owned = self._partitions.get((topic, partition))
        return owned.epoch if owned else None

    def read(self, topic: str, partition: int, offset: int) -> None:
        """Note that a message was read. Offsets rise, but can have gaps, because Kafka leaves some out."""
        owned = self._partitions[topic, partition]
        if offset not in owned.unfinished and offset not in owned.finished_ahead:
            owned.read.append(offset)
            owned.unfinished.add(offset)
        owned.next_offset = offset + 1
        if owned.start_offset is None:
            owned.start_offset = offset

    def advance(self, topic: str, partition: int, offset: int) -> None:
        """Note that Kafka has no more messages before this offset. Call `read` for the messages of the poll first.

        After the last message there can be records that no consumer gets: markers of transactions, and messages of
        aborted transactions.
        """
        owned = self._partitions.get((topic, partition))
        if owned is None:
            return
        if owned.start_offset is None:
            owned.start_offset = offset
        # In the first call this is the start of the ownership, or an offset after records that no consumer gets. Both
        # may be committed.
        if owned.next_offset is None or offset > owned.next_offset:
            owned.next_offset = offset
            if offset and not owned.read:
                owned.committable = offset

    def finish(self, topic: str, partition: int, offset: int, epoch: int, written_ms: int | None = None) -> None:
        """Note that the effect of a message is durable. A repeated call, or a call for another epoch, changes nothing.

        :param written_ms: Kafka's timestamp of the message, in milliseconds since 1970 UTC; None if it has none.
        """
        owned = self._partitions.get((topic, partition))
        if owned is None or owned.epoch != epoch or offset not in owned.unfinished:
            return
        owned.unfinished.discard(offset)
        read, ahead = owned.read, owned.finished_ahead
        if offset != read[0]:
            ahead[offset] = written_ms
            return
        read.popleft()
        while ahead and read[0] in ahead:
            offset = read.popleft()
            written_ms = ahead.pop(offset)
        owned.written_ms = written_ms
        owned.committable = offset + 1 if read else owned.next_offset

    def to_commit(self) -> dict[tuple[str, int], int]:
        """The offsets to commit, of the partitions where they differ from the committed ones."""
        return {
            key: owned.committable
            for key, owned in self._partitions.items()
            if owned.committable is not None and owned.committable != owned.committed
        }

    def written_ms(self, topic: str, partition: int) -> int | None:
        """Kafka's timestamp of the last message before the offset to commit, in milliseconds since 1970 UTC."""
        owned = self._partitions.get((topic, partition))
        return owned.written_ms if owned else None

    def committed(self, offsets: dict[tuple[str, int], int]) -> None:
        """Note that these offsets were committed."""
        for key, offset in offsets.items():
            owned = self._partitions.get(key)
            if owned:
                owned.committed = offset

    def is_committed(self, topic: str, partition: int, offset: int) -> bool:
        """True if a committed offset is known that is after this message, so the message will not be read again."""
        owned = self._partitions.get((topic, partition))
        return owned is not None and offset < max(owned.committed or 0, owned.start_offset or 0)

    def is_unfinished(self, topic: str, partition: int, offset: int) -> bool:
        """True if this message was read and is not yet durable."""
        owned = self._partitions.get((topic, partition))
        return owned is not None and offset in owned.unfinished

    def unfinished(self, partitions: Iterable[tuple[str, int]]) -> int:
        """The number of unfinished messages of these partitions."""
        return sum(len(owned.unfinished) for key in partitions if (owned := self._partitions.get(key)))

    @property
    def in_flight(self) -> int:
        """The number of unfinished messages."""
        return self.unfinished(self._partitions)

    @property
    def remembered(self) -> int:
        """The number of stored offsets, including those of finished messages behind an unfinished one."""
        return sum(len(owned.read) for owned in self._partitions.values())

    def position(self, topic: str, partition: int) -> int | None:
        """The first offset that is not yet durable; None before the first read."""
        owned = self._partitions.get((topic, partition))
        if owned is None:
            return None
        return owned.read[0] if owned.read else owned.next_offset
