"""The outbox in Redis."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pydantic_core import from_json, to_json

from bcs.domain.history import HistoryEntry
from bcs.errors import OutboxFull
from bcs.storage.redis.archive_queue import ArchiveQueue
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.queue import RedisQueue
from bcs.wire.published import OutboundMessage


def stream_key(prefix: str) -> str:
    """The key of the stream in which messages wait for Kafka."""
    return f"{prefix}{{outbox}}"


def parked_key(prefix: str) -> str:
    """The key of the stream of messages that Kafka will never accept."""
    return f"{prefix}{{outbox}}:parked"


class RedisOutbox(RedisQueue[OutboundMessage]):
    """The queue of messages that must reach Kafka.

    :param key_prefix: the prefix of the stream's key.
    :param consumer: this process's name among the replicas.
    :param limit: how many messages the outbox holds at most.
    :param explanations: the queue of explanations that wait for the archive; None without an archive.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        key_prefix: str,
        consumer: str,
        limit: int,
        explanations: ArchiveQueue | None = None,
    ) -> None:
        super().__init__(
            nodes,
            stream=stream_key(key_prefix),
            parked=parked_key(key_prefix),
            group="publishers",
            consumer=consumer,
            limit=limit,
        )
        self._explanations = explanations

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """See `Outbox.announce`."""
        additions = self._explanations.additions_if_room([explanation]) if self._explanations else []
        await self.append(messages, *additions)

    def _fields(self, message: OutboundMessage) -> list[str | bytes]:
        fields: list[str | bytes] = ["kind", message.kind, "topic", message.topic, "value", message.value]
        if message.key is not None:
            fields += ["key", message.key]
        if message.truncated is not None:
            fields += ["reduced", message.truncated]
        if message.headers:
            fields += ["headers", to_json([(name, _text(value)) for name, value in message.headers])]
        return fields

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

    def _since_ms(self, message: OutboundMessage) -> int | None:
        return message.waits_since_ms

    def _full_error(self, limit: int) -> Exception:
        return OutboxFull(limit)


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
