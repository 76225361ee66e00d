"""The index of the batches in Redis, where there is no archive: the batches by their last change.

The index is written best effort, after the commits. What it lacks is only not found; no answer about a batch depends on
it. It is spread over sorted sets with hash tags of their own, because the batches of a cluster are on different nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any
from zlib import crc32

import anyio
import structlog

from bcs.domain.slices import in_slices
from bcs.errors import StoreUnavailable
from bcs.observability.logged_causes import LoggedCauses
from bcs.storage.batch_index import WINDOW_US, IndexedBatch, Place, Scan
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.stream_layouts import small_calls

log = structlog.stdlib.get_logger("bcs.redis")

SHARDS = 16
"""This must never change: a batch would be in two sets."""

_FLUSH_SECONDS = 0.5
# Redis may be away for a while. What has no room is not found until it changes again.
_MOST_PENDING = 50_000
_ADDED_AT_A_TIME = 500
_TRIM_SECONDS = 10.0
# Redis answers nobody while it removes them.
_REMOVED_AT_A_TIME = 1000
# Several processes may give batches the same place.
_TIES = 16
# The reply to PTTL about a key that is not there.
_GONE = -2


def index_key(prefix: str, number: int) -> str:
    """The key of one of the sorted sets."""
    return f"{prefix}{{batches:{number}}}:changed"


class RedisBatchIndex:
    """A `BatchIndex` of the batches in Redis. Batches are noted in memory, and written together.

    :param key_prefix: the prefix of every key.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param max_batches: how many batches the index has at most, about; those that changed first are removed.
    :param now_us: the wall-clock time in microseconds since 1970 UTC.
    :param read_only: True if batches that have expired must not be removed.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        key_prefix: str,
        ttl_seconds: int,
        max_batches: int,
        now_us: Callable[[], int],
        read_only: bool = False,
    ) -> None:
        self._nodes = nodes
        self._read_only = read_only
        self._key_prefix = key_prefix
        self._ttl_us = ttl_seconds * 1_000_000
        self._max_of_shard = max(1, max_batches // SHARDS)
        self._now_us = now_us
        self._window = 0
        # The batches that have a place in this window already.
        self._placed: set[str] = set()
        self._pending: dict[str, int] = {}
        self._newest_us = 0
        self._trim_at = 0.0
        self._logged = LoggedCauses()

    def note(self, batch_id: str) -> None:
        """Note that a batch has changed; the next flush writes it."""
        now_us = self._now_us()
        window = now_us // WINDOW_US
        if window != self._window or len(self._placed) >= _MOST_PENDING:
            self._window = window
            self._placed.clear()
        if batch_id in self._placed:
            return
        self._placed.add(batch_id)
        # No two batches of a process have the same place.
        self._newest_us = max(now_us, self._newest_us + 1)
        self._pending[batch_id] = self._newest_us
        if len(self._pending) > _MOST_PENDING:
            del self._pending[next(iter(self._pending))]

    async def run(self) -> None:
        """Write what was noted, until cancelled."""
        while True:
            await anyio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what was noted since the last flush. What Redis does not take now is written later."""
        # What is noted meanwhile waits for the next flush. Else many small writes would follow each other under load.
        left = len(self._pending)
        while left > 0 and self._pending:
            batches = dict(islice(self._pending.items(), min(left, _ADDED_AT_A_TIME)))
            left -= len(batches)
            # What is noted meanwhile is newer.
            for batch_id in batches:
                del self._pending[batch_id]
            failing = await self._add(batches)
            if failing:
                self._pending = {batch_id: batches[batch_id] for batch_id in failing} | self._pending
                return
            self._logged.clear()
        if anyio.current_time() >= self._trim_at and self._newest_us:
            self._trim_at = anyio.current_time() + _TRIM_SECONDS
            await self._trim()

    async def _add(self, batches: dict[str, int]) -> list[str]:
        """Write places. Returns the batches that Redis did not take."""
        by_key: dict[str, list[str]] = {}
        for batch_id in batches:
            by_key.setdefault(self._key_of(batch_id), []).append(batch_id)
        commands: dict[str, list[Command]] = {}
        for key, ids in by_key.items():
            places: list[str | int] = []
            for batch_id in ids:
                places += (batches[batch_id], batch_id)
            commands[key] = [("ZADD", key, *places), ("PEXPIRE", key, (self._ttl_us + WINDOW_US) // 1000)]
        failing: dict[str, StoreUnavailable] = {}
        await small_calls(self._nodes, commands, failing)
        for error in failing.values():
            self._complain(error)
        return [batch_id for key in failing for batch_id in by_key[key]]

    async def _trim(self) -> None:
        """Remove batches that have expired, and those that changed first where there are too many."""
        expired_us = self._now_us() - self._ttl_us - WINDOW_US
        sizes: dict[str, list[Command]] = {
            key: [("ZRANGE", key, 0, 0, "WITHSCORES"), ("ZCARD", key)] for key in self._keys()
        }
        failing: dict[str, StoreUnavailable] = {}
        removals: dict[str, list[Command]] = {}
        for key, (first, size) in (await small_calls(self._nodes, sizes, failing)).items():
            oldest_us = min((place.at_us for place in _places(first)), default=expired_us)
            if oldest_us < expired_us:
                # Few windows at a time, and so not all batches of days.
                removed_us = min(expired_us, oldest_us + 30 * WINDOW_US)
                removals.setdefault(key, []).append(("ZREMRANGEBYSCORE", key, "-inf", f"({removed_us}"))
            if size > self._max_of_shard:
                excess = min(size - self._max_of_shard, _REMOVED_AT_A_TIME)
                removals.setdefault(key, []).append(("ZREMRANGEBYRANK", key, 0, excess - 1))
        if removals:
            self._trim_at = 0.0  # there may be more
            await small_calls(self._nodes, removals, failing)
        for error in failing.values():
            self._complain(error)

    async def before(self, place: Place | None, *, lowest_us: int, limit: int) -> Scan:
        """See `BatchIndex.before`."""
        highest = "+inf" if place is None else place.at_us
        places, ended = await self._scan(
            (highest, max(0, lowest_us), "BYSCORE", "REV"), limit, lambda each: place is None or each < place, -1
        )
        return await self._existing(places, ended)

    async def after(self, place: Place, *, limit: int) -> Scan:
        """See `BatchIndex.after`."""
        places, ended = await self._scan((place.at_us, "+inf", "BYSCORE"), limit, lambda each: each > place, 1)
        return await self._existing(places, ended)

    async def forget(self, batch_id: str) -> None:
        """See `BatchIndex.forget`."""
        if self._read_only:
            return
        self._pending.pop(batch_id, None)
        self._placed.discard(batch_id)
        key = self._key_of(batch_id)
        failing: dict[str, StoreUnavailable] = {}
        await small_calls(self._nodes, {key: [("ZREM", key, batch_id)]}, failing)
        if failing:
            raise failing[key]

    async def _scan(
        self, between: Sequence[str | int], limit: int, wanted: Callable[[Place], bool], direction: int
    ) -> tuple[list[Place], bool]:
        """The next places of all sets together.

        :param between: the arguments of ZRANGE.
        :param wanted: True for a place on the other side of the beginning.
        :param direction: 1 for rising places, -1 for falling ones.
        :returns: the places in their order, and whether there are no more.
        """
        # Each set has about the same share. Where a set has more, the places behind its last one wait.
        share = _TIES + 2 * limit // SHARDS
        commands: dict[str, list[Command]] = {
            key: [("ZRANGE", key, *between, "LIMIT", 0, share, "WITHSCORES")] for key in self._keys()
        }
        failing: dict[str, StoreUnavailable] = {}
        answered = await small_calls(self._nodes, commands, failing)
        if failing:
            raise next(iter(failing.values()))
        found: list[Place] = []
        horizon: Place | None = None
        for [reply] in answered.values():
            places = _places(reply)
            found += filter(wanted, places)
            if len(places) == share and (horizon is None or (places[-1] > horizon) == (direction < 0)):
                horizon = places[-1]
        found.sort(reverse=direction < 0)
        if horizon is not None:
            found = [place for place in found if place == horizon or (place > horizon) == (direction < 0)]
        return found[:limit], horizon is None and len(found) <= limit

    async def _existing(self, places: Iterable[Place], ended: bool) -> Scan:
        """The batches that have not expired, with the times of their last writes. The others leave the index."""
        now_us = self._now_us()
        keys = {BatchKeys(self._key_prefix, place.batch_id).facts: place for place in places}
        commands: dict[str, list[Command]] = {key: [("PTTL", key)] for key in keys}
        failing: dict[str, StoreUnavailable] = {}
        answered = await small_calls(self._nodes, commands, failing) if commands else {}
        if failing:
            raise next(iter(failing.values()))
        batches: list[IndexedBatch] = []
        gone: dict[str, list[str]] = {}
        for key, place in keys.items():
            [remaining_ms] = answered[key]
            if remaining_ms == _GONE and not self._read_only:
                gone.setdefault(self._key_of(place.batch_id), []).append(place.batch_id)
            # Each write renews the time to live. Another setting of it is no reason for an impossible time.
            written_us = now_us - self._ttl_us + remaining_ms * 1000
            batches.append(IndexedBatch(place, min(max(written_us, place.at_us), place.at_us + WINDOW_US)))
        for some in in_slices(gone.items(), SHARDS):
            # Without an answer they leave the index the next time.
            await small_calls(self._nodes, {key: [("ZREM", key, *ids)] for key, ids in some}, {})
        return Scan(batches, ended, now_us)

    def _keys(self) -> list[str]:
        return [index_key(self._key_prefix, number) for number in range(SHARDS)]

    def _key_of(self, batch_id: str) -> str:
        return index_key(self._key_prefix, crc32(batch_id.encode()) % SHARDS)

    def _complain(self, error: StoreUnavailable) -> None:
        if self._logged.note(error.cause):
            log.warning("batch_index_not_written", problem=error.cause)


def _places(reply: Sequence[Any]) -> list[Place]:
    """The places in a reply with scores."""
    return [
        Place(int(float(score)), member.decode(errors="replace"))
        for member, score in zip(reply[::2], reply[1::2], strict=True)
    ]
