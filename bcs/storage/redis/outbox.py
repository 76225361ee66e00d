"""The outbox in Redis."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from zlib import crc32

from pydantic_core import from_json, to_json

from bcs.domain.history import HistoryEntry
from bcs.errors import OutboxFull, StoreUnavailable
from bcs.storage.redis.archive_queue import ArchiveQueue
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.queue import KnownLengths, RedisQueue
from bcs.storage.redis.stream_layouts import StreamLayouts, stream_key
from bcs.storage.redis.stream_set import StreamSet
from bcs.wire.published import OutboundMessage

# The publisher asks every 50 ms under load, so that each of 16 streams has its turn within 200 ms.
_FEW = 25

DEAD_LETTER = b"dead_letter"
"""The kind of messages that are erased with their batch."""


def parked_key(prefix: str, number: int) -> str:
    """The key of the stream of messages that Kafka will never accept, beside the stream with a number."""
    return f"{stream_key(prefix, number)}:parked"


class RedisOutbox(StreamSet[OutboundMessage]):
    """The queue of messages that must reach Kafka. Messages with the same key keep their order, if no server is away.

    :param consumer: this process's name among the replicas.
    :param limit: how many messages the outbox holds at most.
    :param explanations: the queue of explanations that wait for the archive; None without an archive.
    :param announce_once_seconds: how long an announcement is not stored again; 0 to store each.
    """

    def __init__(
        self,
        layouts: StreamLayouts,
        *,
        consumer: str,
        limit: int,
        explanations: ArchiveQueue | None = None,
        announce_once_seconds: float = 0.0,
    ) -> None:
        super().__init__(layouts, limit=limit, few=_FEW)
        self._once_ms = int(announce_once_seconds * 1000)
        self._consumer = consumer
        self._explanations = explanations

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """See `Outbox.announce`."""
        if not messages:
            return
        await self._ensure_room(len(messages))
        await self._append_to(self._layouts.number(self._key(messages[0])), messages, explanation)

    async def _append_to(
        self, number: int, items: Sequence[OutboundMessage], explanation: HistoryEntry | None = None
    ) -> None:
        """Append to a stream; to one on another server while the stream's own server is away.

        That server may have nothing to do with the batch, so the batch must not be refused for it. If the first server
        has taken the messages all the same, they are published twice.
        """
        try:
            await self._append_at(number, items, explanation)
        except StoreUnavailable as failure:
            if failure.answered:
                raise
            for other in self._numbers_elsewhere(number):
                try:
                    await self._append_at(other, items, explanation)
                except StoreUnavailable as further:
                    # What was not sent has cost no time.
                    if further.late or not further.unsent:
                        break
                else:
                    return
            raise

    async def _append_at(
        self, number: int, messages: Sequence[OutboundMessage], explanation: HistoryEntry | None
    ) -> None:
        additions: list[Command] = []
        if self._explanations and explanation:
            additions = self._explanations.additions_if_room(number, [explanation])
        await self._numbered_stream(number).append(messages, *additions)

    def _numbers_elsewhere(self, number: int) -> list[int]:
        """One stream on each other server that is not known to be away, beginning after a stream."""
        streams = self._layouts.layout
        nodes = {each: self._numbered_stream(each).node for each in range(streams)}
        known = {nodes[number].address}
        found = []
        for other in (*range(number + 1, streams), *range(number)):
            if nodes[other].address not in known and nodes[other].circuit != "open":
                known.add(nodes[other].address)
                found.append(other)
        return found

    def _stream(self, number: int) -> RedisQueue[OutboundMessage]:
        return OutboxStream(
            self._layouts.nodes,
            key_prefix=self._layouts.key_prefix,
            number=number,
            consumer=self._consumer,
            lengths=self._lengths,
            once_ms=self._once_ms,
        )

    def _key(self, message: OutboundMessage) -> bytes:
        # Announcements and most dead letters have the batch id as their key. What has no key is spread by its value, so
        # that a retry goes to the same stream.
        return b"%d" % crc32(message.value) if message.key is None else message.key

    def _full_error(self, limit: int) -> Exception:
        return OutboxFull(limit)


class OutboxStream(RedisQueue[OutboundMessage]):
    """A stream of messages that must reach Kafka.

    :param key_prefix: the prefix of the stream's key.
    :param number: the stream's number.
    :param consumer: this process's name among the replicas.
    :param lengths: see `RedisQueue`.
    :param once_ms: how long an announcement is not stored again, in milliseconds; 0 to store each.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        key_prefix: str,
        number: int,
        consumer: str,
        lengths: KnownLengths,
        once_ms: int = 0,
    ) -> None:
        super().__init__(
            nodes,
            stream=stream_key(key_prefix, number),
            parked=parked_key(key_prefix, number),
            group="publishers",
            consumer=consumer,
            lengths=lengths,
            once_ms=once_ms,
        )

    def _fields(self, message: OutboundMessage) -> list[str | bytes]:
        fields: list[str | bytes] = ["kind", message.kind, "topic", message.topic, "value", message.value]
        if message.key is not None:
            fields += ["key", message.key]
        if message.truncated is not None:
            fields += ["reduced", message.truncated]
        if message.headers:
            fields += ["headers", to_json([(name, _text(value)) for name, value in message.headers])]
        return fields

    def _is_about(self, fields: dict[bytes, bytes], batch_id: str) -> bool:
        # A dead letter has the event, and the batch's id as its key. An announcement has nothing of the pupils, and who
        # was told of a pruned phase waits for it.
        return fields.get(b"kind") == DEAD_LETTER and fields.get(b"key") == batch_id.encode()

    def _item(self, fields: dict[bytes, bytes]) -> OutboundMessage:
        return OutboundMessage(
            fields[b"kind"].decode(),
            fields[b"topic"].decode(),
            fields.get(b"key"),
            fields[b"value"],
            truncated=fields.get(b"reduced"),
            headers=tuple(
                (name, None if value is None else base64.b64decode(value))
                for name, value in from_json(fields.get(b"headers", b"[]"))
            ),
            waits_since_ms=int(fields[b"since"]) if b"since" in fields else None,
        )

    def _once_key(self, message: OutboundMessage) -> str | None:
        # In the slot of the stream, so that one script sets this key and adds the message.
        return f"{self.key}:announced:{message.event_id}" if self._once_ms and message.event_id else None

    def _since_ms(self, message: OutboundMessage) -> int | None:
        return message.waits_since_ms


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
