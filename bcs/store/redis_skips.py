"""Orders to pass over messages, in Redis: those that wait for the intake, and the history of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ResponseError

from bcs.domain.errors import StoreCorrupted
from bcs.domain.history import Position
from bcs.domain.skips import SkipEvent, SkipOrder, SkipOutcome
from bcs.store.multiplexer import Command
from bcs.store.redis_gateway import RedisGateway

# Entries are made by hand, one for each order and one for its end.
_HISTORY_ENTRIES = 10_000


class RedisSkips:
    """What operators ordered the intake to pass over.

    :param key_prefix: stands before the keys.
    """

    def __init__(self, gateway: RedisGateway, *, key_prefix: str) -> None:
        self._gateway = gateway
        self._waiting = f"{key_prefix}{{intake}}:skips"
        self._history = f"{key_prefix}{{intake}}:skips:history"

    async def order(self, order: SkipOrder) -> None:
        """Take an order in. The same place again replaces the order before.

        :raises StoreUnavailable: whether it was taken is unknown.
        """
        event = SkipEvent(order, SkipOutcome.ORDERED, order.ordered_at, order.ordered_by)
        await self._transaction(("HSET", self._waiting, _field(order.position), _encoded(order)), self._noted(event))

    async def close(self, event: SkipEvent) -> None:
        """Note what became of an order, which waits no longer.

        :raises StoreUnavailable: whether it was noted is unknown.
        """
        await self._transaction(("HDEL", self._waiting, _field(event.order.position)), self._noted(event))

    async def waiting(self) -> list[SkipOrder]:
        """The orders that wait.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: something else wrote there.
        """
        with self._corruption_named():
            [stored] = await self._gateway.share(("HGETALL", self._waiting))
            return [_decoded(value) for value in stored[1::2]]

    async def history(self, limit: int) -> list[SkipEvent]:
        """What was ordered and what became of it, newest first.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: something else wrote there.
        """
        with self._corruption_named():
            [entries] = await self._gateway.call(("XREVRANGE", self._history, "+", "-", "COUNT", limit))
            return [_event(dict(zip(fields[::2], fields[1::2], strict=True))) for _, fields in entries]

    def _noted(self, event: SkipEvent) -> Command:
        fields = ("order", _encoded(event.order), "outcome", event.outcome.name, "at", event.at, "by", event.by)
        return ("XADD", self._history, "MAXLEN", "~", _HISTORY_ENTRIES, "*", *fields)

    async def _transaction(self, *commands: Command) -> None:
        with self._corruption_named():
            await self._gateway.call(("MULTI",), *commands, ("EXEC",))

    @contextmanager
    def _corruption_named(self) -> Iterator[None]:
        try:
            yield
        except (ResponseError, ValueError, LookupError, TypeError) as error:
            raise StoreCorrupted(self._waiting, str(error)) from error


def _field(position: Position) -> str:
    return f"{position.topic}/{position.partition}/{position.offset}"


def _encoded(order: SkipOrder) -> str:
    at = order.position
    return json.dumps([at.topic, at.partition, at.offset, order.reason, order.ordered_by, order.ordered_at])


def _decoded(value: bytes) -> SkipOrder:
    topic, partition, offset, reason, ordered_by, ordered_at = json.loads(value)
    return SkipOrder(Position(str(topic), int(partition), int(offset)), str(reason), str(ordered_by), str(ordered_at))


def _event(fields: dict[Any, Any]) -> SkipEvent:
    return SkipEvent(
        _decoded(fields[b"order"]),
        SkipOutcome[fields[b"outcome"].decode()],
        fields[b"at"].decode(),
        fields[b"by"].decode(),
    )
