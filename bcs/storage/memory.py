"""The stores for development: state and outbox in memory, with a time to live as in Redis."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import anyio.lowlevel

from bcs.domain.history import HistoryEntry
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarize
from bcs.domain.state import BatchState
from bcs.errors import BatchErased, OutboxFull, StoreUnavailable, Tombstone
from bcs.storage.batch_index import IndexedBatch, Place, Scan
from bcs.storage.ports import Committed, ErasedCopy, ErasedEntries, Leased, LeasedMessage, Waiting
from bcs.storage.roster import Roster
from bcs.wire.published import OutboundMessage


@dataclass(slots=True)
class _Batch:
    expires_at: float
    version: int = 0
    state: BatchState = field(default_factory=BatchState)


class MemoryStateStore:
    """The state store without a server. All data is lost when the process ends.

    :param law: the law of summaries whose caller names no law.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param clock: returns monotonic seconds.
    :param max_essays: how many essays a batch may have; None for no limit.
    :param changed: gets the id of each batch that was written.
    """

    def __init__(
        self,
        *,
        law: CompletionLaw,
        ttl_seconds: float,
        clock: Callable[[], float],
        max_essays: int | None = None,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._roster = Roster(max_essays)
        self._changed = changed
        self._law = law
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._batches: OrderedDict[str, _Batch] = OrderedDict()
        # Each with the time at which it ends.
        self._tombstones: dict[str, tuple[float, Tombstone]] = {}

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """See `StateStore.commit`."""
        await anyio.lowlevel.checkpoint()
        before = self._live(batch_id)
        state = before.state.copy() if before else BatchState()
        self._roster.ensure_room_among(state.first_seen_us, delta.first_seen_us)
        changed = state.merge(delta)
        self._put(batch_id, (before.version if before else 0) + (not changed.empty), state)
        self._changed(batch_id)
        return Committed()

    async def is_erased(self, batch_id: str) -> bool:
        """See `StateStore.is_erased`."""
        try:
            self._live(batch_id)
        except BatchErased:
            return True
        return False

    async def erasable(self, batch_id: str) -> ErasedCopy:
        """See `StateStore.erasable`."""
        batch = self._batches.get(batch_id)
        return ErasedCopy(batch is not None, len(batch.state.first_seen_us) if batch else 0)

    async def erase(self, batch_id: str, tombstone: Tombstone) -> ErasedCopy:
        """See `StateStore.erase`."""
        now = self._clock()
        self._tombstones = {known: kept for known, kept in self._tombstones.items() if kept[0] > now}
        self._tombstones[batch_id] = now + (tombstone.until_us - tombstone.at_us) / 1_000_000, tombstone
        erased = await self.erasable(batch_id)
        self._batches.pop(batch_id, None)
        return erased

    async def store_summary(self, batch_id: str, summary: BatchSummary, law: CompletionLaw | None = None) -> Committed:
        """See `StateStore.store_summary`; memory makes each summary anew."""
        return Committed()

    async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
        """See `StateStore.ensure_room`."""
        batch = self._live(batch_id)
        self._roster.ensure_room_among(batch.state.first_seen_us if batch else (), essays)

    async def summary(self, batch_id: str, law: CompletionLaw | None = None) -> BatchSummary:
        """See `StateStore.summary`."""
        batch = self._live(batch_id)
        return summarize(batch.state, law or self._law, batch.version) if batch else BatchSummary()

    async def state(self, batch_id: str) -> BatchState:
        """See `StateStore.state`."""
        batch = self._live(batch_id)
        return batch.state.copy() if batch else BatchState()

    async def snapshot(self, batch_id: str) -> tuple[BatchState, int]:
        """See `SnapshotSource.snapshot`."""
        batch = self._live(batch_id)
        return (batch.state.copy(), batch.version) if batch else (BatchState(), 0)

    async def partial_state(self, batch_id: str) -> BatchState:
        """See `StateStore.partial_state`; there is no archive, so this is the whole state."""
        return await self.state(batch_id)

    def ensure_reachable(self) -> None:
        """See `StateStore.ensure_reachable`; memory is always reachable."""

    def server_of(self, batch_id: str) -> str:
        """See `StateStore.server_of`."""
        return ""

    def ensure_writable(self, batch_id: str) -> None:
        """See `StateStore.ensure_writable`; memory accepts all writes."""

    async def time_us(self, _batch_id: str) -> int:
        """See `StateStore.time_us`; the store's clock is this machine's clock."""
        return time.time_ns() // 1000

    async def ping(self) -> None:
        """See `StateStore.ping`; memory is always reachable."""

    @property
    def problem(self) -> str:
        """See `StateStore.problem`; always empty."""
        return ""

    @property
    def partly_reachable(self) -> bool:
        """See `StateStore.partly_reachable`; memory has every batch."""
        return False

    def _live(self, batch_id: str) -> _Batch | None:
        ends_at, tombstone = self._tombstones.get(batch_id, (0.0, None))
        if tombstone and ends_at > self._clock():
            raise BatchErased(batch_id, tombstone)
        batch = self._batches.get(batch_id)
        return batch if batch and batch.expires_at > self._clock() else None

    def _put(self, batch_id: str, version: int, state: BatchState) -> None:
        now = self._clock()
        self._batches[batch_id] = _Batch(now + self._ttl_seconds, version, state)
        self._batches.move_to_end(batch_id)
        # All batches have the same time to live, so they are in the order in which they expire.
        while next(iter(self._batches.values())).expires_at <= now:
            self._batches.popitem(last=False)


class MemoryBatchIndex:
    """A `BatchIndex` of the batches in memory.

    :param ttl_seconds: how long a batch is kept after its last write.
    :param now_us: the wall-clock time in microseconds since 1970 UTC.
    """

    def __init__(self, ttl_seconds: int, now_us: Callable[[], int]) -> None:
        self._ttl_us = ttl_seconds * 1_000_000
        self._now_us = now_us
        self._changed: OrderedDict[str, int] = OrderedDict()

    def note(self, batch_id: str) -> None:
        """Note that a batch has changed."""
        now_us = self._now_us()
        self._changed[batch_id] = now_us
        self._changed.move_to_end(batch_id)
        while next(iter(self._changed.values())) < now_us - self._ttl_us:
            self._changed.popitem(last=False)

    async def before(self, place: Place | None, *, lowest_us: int, limit: int) -> Scan:
        """See `BatchIndex.before`."""
        places = [each for each in self._places() if place is None or each < place]
        return self._scan([each for each in reversed(places) if each.at_us >= lowest_us], limit)

    async def after(self, place: Place, *, limit: int) -> Scan:
        """See `BatchIndex.after`."""
        return self._scan([each for each in self._places() if each > place], limit)

    async def forget(self, batch_id: str) -> None:
        """See `BatchIndex.forget`."""
        self._changed.pop(batch_id, None)

    def _places(self) -> list[Place]:
        return sorted(Place(at_us, batch_id) for batch_id, at_us in self._changed.items())

    def _scan(self, places: Sequence[Place], limit: int) -> Scan:
        batches = [IndexedBatch(place, place.at_us) for place in places[:limit]]
        return Scan(batches, len(places) <= limit, self._now_us())


class MemoryOutbox:
    """The outbox without a server. All messages are lost when the process ends.

    :param limit: how many messages the outbox holds at most.
    :param clock: returns monotonic seconds.
    :param announce_once_seconds: how long an announcement is not stored again; 0 to store each.
    """

    def __init__(self, limit: int, clock: Callable[[], float], announce_once_seconds: float = 0.0) -> None:
        self._limit = limit
        self._clock = clock
        self._announce_once_seconds = announce_once_seconds
        # The event ids of announcements, in the order in which they may be announced again, with the time.
        self._announced: OrderedDict[str, float] = OrderedDict()
        self._waiting: deque[LeasedMessage] = deque()
        self._leased: dict[str, tuple[float, LeasedMessage]] = {}
        self._appended = 0
        # In the order in which the messages were appended, also after a requeue.
        self._since: dict[str, float] = {}
        self.parked: deque[tuple[OutboundMessage, str]] = deque(maxlen=1000)

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        """See `Outbox.append`."""
        if len(self._waiting) + len(self._leased) + len(messages) > self._limit:
            raise OutboxFull(self._limit)
        for message in messages:
            if self._is_repeated(message):
                continue
            self._appended += 1
            entry = Leased(str(self._appended), message)
            self._since[entry.entry_id] = self._clock()
            self._waiting.append(entry)

    def _is_repeated(self, message: OutboundMessage) -> bool:
        if not self._announce_once_seconds or message.event_id is None:
            return False
        now = self._clock()
        while self._announced and next(iter(self._announced.values())) <= now:
            self._announced.popitem(last=False)
        if message.event_id in self._announced:
            return True
        self._announced[message.event_id] = now + self._announce_once_seconds
        return False

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """See `Outbox.announce`; there is no archive, so the explanation is dropped."""
        await self.append(messages)

    async def lease(self, limit: int) -> list[LeasedMessage]:
        """See `Outbox.lease`."""
        leased = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        now = self._clock()
        self._leased.update((entry.entry_id, (now, entry)) for entry in leased)
        return leased

    async def resume(self, limit: int) -> list[LeasedMessage]:
        """See `Outbox.resume`."""
        return [entry for _, entry in self._leased.values()][:limit]

    async def recover(self, idle_seconds: float, limit: int) -> list[LeasedMessage]:
        """See `Outbox.recover`."""
        now = self._clock()
        stale = [entry for since, entry in self._leased.values() if now - since >= idle_seconds][:limit]
        self._leased.update((entry.entry_id, (now, entry)) for entry in stale)
        return stale

    @property
    def failing(self) -> Mapping[str, StoreUnavailable]:
        """See `Outbox.failing`."""
        return {}

    async def ack(self, leased: Sequence[LeasedMessage]) -> None:
        """See `Outbox.ack`."""
        for entry in leased:
            self._leased.pop(entry.entry_id, None)
            self._since.pop(entry.entry_id, None)

    async def requeue(self, leased: Sequence[LeasedMessage]) -> None:
        """See `Outbox.requeue`."""
        for entry in leased:
            self._leased.pop(entry.entry_id, None)
        self._waiting.extend(leased)

    async def park(self, leased: LeasedMessage, problem: str) -> None:
        """See `Outbox.park`."""
        self.parked.append((leased.message, problem))
        await self.ack([leased])

    async def erase(self, batch_id: str, *, dry_run: bool, seconds: float) -> ErasedEntries:
        """See `Outbox.erase`."""
        key = batch_id.encode()
        kept = deque(each for each in self._waiting if each.message.kind != "dead_letter" or each.message.key != key)
        erased = len(self._waiting) - len(kept)
        if not dry_run:
            self._waiting = kept
        return ErasedEntries(erased)

    async def backlog(self) -> int:
        """See `Outbox.backlog`."""
        return len(self._waiting) + len(self._leased)

    async def measure(self) -> Waiting:
        """See `Outbox.measure`."""
        oldest = next(iter(self._since.values()), None)
        return Waiting(await self.backlog(), 0.0 if oldest is None else self._clock() - oldest)
