"""What waits in Redis for the permanent record, while that is away or behind."""

from __future__ import annotations

from collections.abc import Sequence

from bcs.domain.history import HistoryEntry
from bcs.errors import BacklogFull
from bcs.storage.history_codec import decode_entry, encode_entry
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.queue import RedisQueue

FACTS, EXPLANATIONS = "record", "explanations"


def waiting_key(prefix: str, name: str) -> str:
    """Where entries wait for the record.

    :param name: of the queue: `FACTS` or `EXPLANATIONS`.
    """
    # In the outbox's slot, so that an announcement and what explains it are taken in by one transaction.
    return f"{prefix}{{outbox}}:{name}"


def refused_key(prefix: str, name: str) -> str:
    """Where entries are that the record will never take."""
    return f"{waiting_key(prefix, name)}:parked"


class ArchiveQueue(RedisQueue[HistoryEntry]):
    """Entries that must reach the record.

    :param key_prefix: stands before the stream's key.
    :param name: of this queue: `FACTS` or `EXPLANATIONS`.
    :param consumer: this process's name among the replicas.
    :param limit: how many entries it holds at most.
    """

    def __init__(self, gateway: RedisGateway, *, key_prefix: str, name: str, consumer: str, limit: int) -> None:
        super().__init__(
            gateway,
            stream=waiting_key(key_prefix, name),
            parked=refused_key(key_prefix, name),
            group="archivers",
            consumer=consumer,
            limit=limit,
        )

    @property
    def last_known(self) -> int | None:
        """How many entries waited when that was last seen, without asking; None if it never was."""
        return self._length

    async def waiting(self) -> int:
        """How many entries wait, asked on the connection in common: whoever asks may hold one of the others."""
        with self._foreign_key_named():
            [length] = await self._gateway.call_multiplexed(("XLEN", self._stream))
        self._length = int(length)
        return self._length

    def room_for(self, entries: Sequence[HistoryEntry]) -> list[Command]:
        """The commands that take entries in; none when there is no room.

        What only explains an answer must not stand in its way.
        """
        return [] if (self._length or 0) >= self._limit else self.additions(entries)

    def _fields(self, entry: HistoryEntry) -> list[str | bytes]:
        return ["entry", encode_entry(entry)]

    def _item(self, fields: dict[bytes, bytes]) -> HistoryEntry:
        return decode_entry(fields[b"entry"])

    def _full(self, limit: int) -> Exception:
        return BacklogFull(limit)
