"""The outbox in a Redis stream: every replica drains it, and takes over what a dead one had in hand."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from pydantic_core import from_json, to_json
from redis.exceptions import ResponseError

from bcs.contracts.published import OutboundMessage
from bcs.domain.errors import OutboxFull, StoreCorrupted
from bcs.store.base import LeasedMessage
from bcs.store.multiplexer import Command
from bcs.store.redis_gateway import RedisGateway

log = structlog.stdlib.get_logger("bcs.outbox")

_GROUP = "publishers"
_LARGE_BYTES = 64 * 1024


def stream_key(prefix: str) -> str:
    """Where messages wait for Kafka."""
    return f"{prefix}{{outbox}}"


def parked_key(prefix: str) -> str:
    """Where messages are that Kafka will never take."""
    return f"{prefix}{{outbox}}:parked"


class RedisOutbox:
    """The outbox in Redis.

    :param key_prefix: stands before the stream's key.
    :param consumer: this process's name among the replicas.
    :param limit: how many messages it holds at most. Checked against the last known length, so that adding costs one
        round trip; replicas that add at the same moment may exceed it by what they add.
    """

    def __init__(self, gateway: RedisGateway, *, key_prefix: str, consumer: str, limit: int) -> None:
        self._gateway = gateway
        self._stream = stream_key(key_prefix)
        self._parked = parked_key(key_prefix)
        self._consumer = consumer
        self._limit = limit
        self._length = 0
        self._cursor = "0-0"

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        """See `Outbox.append`."""
        if not messages:
            return
        if self._length + len(messages) > self._limit and await self.backlog() + len(messages) > self._limit:
            raise OutboxFull(self._limit)
        additions = map(self._addition, messages)
        # What is large would hold up others on the connection in common.
        large = sum(len(message.value) for message in messages) > _LARGE_BYTES
        send = self._gateway.call if large else self._gateway.share
        with self._corruption_named():
            *_, replies = await send(("MULTI",), *additions, ("XLEN", self._stream), ("EXEC",))
        self._length = replies[-1]

    async def lease(self, limit: int) -> list[LeasedMessage]:
        """See `Outbox.lease`."""
        return await self._leased(await self._read(limit, ">"))

    async def resume(self, limit: int) -> list[LeasedMessage]:
        """See `Outbox.resume`."""
        after = "0"
        while entries := await self._read(limit, after):
            leased = await self._leased(entries)
            if leased:
                return leased
            after = entries[-1][0].decode()  # all of these were deleted by someone else
        return []

    async def recover(self, idle_seconds: float, limit: int) -> list[LeasedMessage]:
        """See `Outbox.recover`."""
        idle_ms = int(idle_seconds * 1000)
        # Redis looks at a limited number of entries at a time, and says where to go on.
        claim: Command = ("XAUTOCLAIM", self._stream, _GROUP, self._consumer, idle_ms, self._cursor, "COUNT", limit)
        reply = await self._call_in_group(claim)
        self._cursor = reply[0].decode()
        return await self._leased(reply[1])

    async def settle(self, entry_ids: Sequence[str]) -> None:
        """See `Outbox.settle`."""
        if entry_ids:
            await self._transaction(*self._removal(entry_ids))

    async def requeue(self, leased: Sequence[LeasedMessage]) -> None:
        """See `Outbox.requeue`."""
        if leased:
            again = [self._addition(entry.message) for entry in leased]
            await self._transaction(*again, *self._removal([entry.entry_id for entry in leased]))

    async def park(self, leased: LeasedMessage, problem: str) -> None:
        """See `Outbox.park`."""
        parking: Command = ("XADD", self._parked, "*", *_fields(leased.message), "problem", problem)
        await self._transaction(parking, *self._removal([leased.entry_id]))

    async def backlog(self) -> int:
        """See `Outbox.backlog`."""
        [self._length] = await self._transaction(("XLEN", self._stream))
        return self._length

    async def _transaction(self, *commands: Command) -> list[Any]:
        with self._corruption_named():
            replies = await self._gateway.call(("MULTI",), *commands, ("EXEC",))
        results: list[Any] = replies[-1]
        return results

    @contextmanager
    def _corruption_named(self) -> Iterator[None]:
        try:
            yield
        except ResponseError as error:
            raise StoreCorrupted(self._stream, str(error)) from error

    async def _read(self, limit: int, after: str) -> list[Any]:
        reply = await self._call_in_group(
            ("XREADGROUP", "GROUP", _GROUP, self._consumer, "COUNT", limit, "STREAMS", self._stream, after)
        )
        entries: list[Any] = reply[0][1] if reply else []
        return entries

    async def _call_in_group(self, command: Command) -> Any:
        """Call, and create the consumer group first where there is none, at the start or after a FLUSHALL."""
        try:
            [reply] = await self._gateway.call(command)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise StoreCorrupted(self._stream, str(error)) from error
            await self._create_group()
            [reply] = await self._gateway.call(command)
        return reply

    async def _create_group(self) -> None:
        try:
            # From the beginning: what was added before the group existed waits for it.
            await self._gateway.call(("XGROUP", "CREATE", self._stream, _GROUP, "0", "MKSTREAM"))
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another replica was first
                raise StoreCorrupted(self._stream, str(error)) from error

    async def _leased(self, entries: Sequence[Any]) -> list[LeasedMessage]:
        leased: list[LeasedMessage] = []
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            if not fields:
                continue  # it was deleted while it was leased
            try:
                message = _message(dict(zip(fields[::2], fields[1::2], strict=True)))
            except (KeyError, ValueError, TypeError) as error:
                # Of another release, or not ours at all: it must neither be lost nor come back for ever.
                parking: Command = ("XADD", self._parked, "*", *fields, "problem", f"not readable: {error!r}")
                await self._transaction(parking, *self._removal([entry_id]))
                log.error("outbox_entry_parked", entry_id=entry_id, problem=repr(error))  # noqa: TRY400
            else:
                leased.append(LeasedMessage(entry_id, message))
        return leased

    def _addition(self, message: OutboundMessage) -> Command:
        return ("XADD", self._stream, "*", *_fields(message))

    def _removal(self, entry_ids: Sequence[str]) -> list[Command]:
        return [("XACK", self._stream, _GROUP, *entry_ids), ("XDEL", self._stream, *entry_ids)]


def _fields(message: OutboundMessage) -> list[str | bytes]:
    fields: list[str | bytes] = ["kind", message.kind, "topic", message.topic, "value", message.value]
    if message.key is not None:
        fields += ["key", message.key]
    if message.reduced is not None:
        fields += ["reduced", message.reduced]
    if message.headers:
        fields += ["headers", to_json([(name, _text(value)) for name, value in message.headers])]
    return fields


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _message(fields: dict[bytes, bytes]) -> OutboundMessage:
    return OutboundMessage(
        fields[b"kind"].decode(),
        fields[b"topic"].decode(),
        fields.get(b"key"),
        fields[b"value"],
        fields.get(b"reduced"),
        tuple(
            (name, None if value is None else base64.b64decode(value))
            for name, value in from_json(fields.get(b"headers", b"[]"))
        ),
    )
