"""The queues in Redis in which entries wait for the archive while PostgreSQL is away or slow."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import anyio

from bcs.domain.history import HistoryEntry
from bcs.errors import BacklogFull
from bcs.storage.history_codec import decode_entry, encode_entry
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.queue import RedisQueue

FACTS, EXPLANATIONS = "archive", "explanations"
FORMER_FACTS = "record"
"""The name of the queue of facts in releases before 0.2.0. Entries in it are drained; nothing is added to it."""


def waiting_key(prefix: str, name: str) -> str:
    """The key of the stream in which entries wait for the archive.

    :param name: the queue's name, `FACTS`, `FORMER_FACTS` or `EXPLANATIONS`.
    """
    # In the outbox's slot, so that one transaction can add an announcement and its explanation.
    return f"{prefix}{{outbox}}:{name}"


def refused_key(prefix: str, name: str) -> str:
    """The key of the stream of entries that PostgreSQL will never accept."""
    return f"{waiting_key(prefix, name)}:parked"


class ArchiveQueue(RedisQueue[HistoryEntry]):
    """A queue of entries that must reach the archive.

    :param key_prefix: the prefix of the stream's key.
    :param name: the queue's name, `FACTS`, `FORMER_FACTS` or `EXPLANATIONS`.
    :param consumer: this process's name among the replicas.
    :param limit: how many entries the queue holds at most.
    """

    def __init__(self, nodes: Nodes, *, key_prefix: str, name: str, consumer: str, limit: int) -> None:
        super().__init__(
            nodes,
            stream=waiting_key(key_prefix, name),
            parked=refused_key(key_prefix, name),
            group="archivers",
            consumer=consumer,
            limit=limit,
        )
        self._filled_at = -inf

    @property
    def idle_seconds(self) -> float:
        """How long ago this process last saw that entries waited; infinite if it never did."""
        return anyio.current_time() - self._filled_at

    @property
    def last_known(self) -> int | None:
        """How many entries waited at the last call to Redis; None before the first call."""
        return self._length

    async def waiting(self, *others: ArchiveQueue) -> int:
        """How many entries wait. Uses the shared connection, because the caller may hold one of the others.

        :param others: further queues, which are counted in the same round trip.
        :raises StoreUnavailable: no answer.
        """
        queues = (self, *others)
        with self._wrong_type_as_outage():
            node = self._nodes.at(self._stream)
            lengths = await node.call_multiplexed(*(("XLEN", queue._stream) for queue in queues))
        for queue, length in zip(queues, lengths, strict=True):
            queue._length = int(length)
            if length:
                queue._filled_at = anyio.current_time()
        return sum(map(int, lengths))

    def additions_if_room(self, entries: Sequence[HistoryEntry]) -> list[Command]:
        """The commands that add entries, for another transaction; empty when the queue is full.

        A full queue of explanations must not keep an answer from being sent.
        """
        return [] if (self._length or 0) >= self._limit else self.additions(entries)

    def _fields(self, entry: HistoryEntry) -> list[str | bytes]:
        return ["entry", encode_entry(entry)]

    def _item(self, fields: dict[bytes, bytes]) -> HistoryEntry:
        return decode_entry(fields[b"entry"])

    def _full_error(self, limit: int) -> Exception:
        return BacklogFull(limit)
