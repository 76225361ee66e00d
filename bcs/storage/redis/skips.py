"""Orders to pass over messages, in Redis: those that wait for the intake, and the history of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from redis.exceptions import ResponseError

from bcs.domain.history import Position
from bcs.domain.skips import SkipEvent, SkipOrder, SkipOutcome, WaitingSkip
from bcs.errors import StoreCorrupted
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway

log = structlog.stdlib.get_logger("bcs.skips")

_UNDECODABLE = (ValueError, LookupError, TypeError)
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
        self._undecodable = set[bytes]()  # each is said once

    async def order(self, order: SkipOrder) -> None:
        """Take an order in. The same place again replaces the order before.

        :raises StoreUnavailable: whether it was taken is unknown.
        """
        event = SkipEvent(order, SkipOutcome.ORDERED, order.ordered_at, order.ordered_by)
        await self._transaction(("HSET", self._waiting, _field(order.position), _encoded(order)), self._noted(event))

    async def carry_out(self, order: SkipOrder, outcome: SkipOutcome) -> None:
        """Note what was done for an order, before the offset behind its message is committed.

        :raises StoreUnavailable: whether it was noted is unknown.
        """
        await self._transaction(("HSET", self._waiting, _field(order.position), _encoded(order, outcome)))

    async def withdraw(self, position: Position, *, at: str, by: str) -> SkipOrder | None:
        """Take an order back, also one that can't be decoded.

        :param at: when, in RFC 3339.
        :param by: who does it.
        :returns: the order; None where no order that can be decoded waits there, or a replica carried it out.
        :raises StoreUnavailable: whether it was taken back is unknown.
        """
        with self._corruption_named():
            [stored] = await self._gateway.call_multiplexed(("HGET", self._waiting, _field(position)))
        try:
            waiting = None if stored is None else _decoded(stored)
        except _UNDECODABLE:
            waiting = None
        removal = ("HDEL", self._waiting, _field(position))
        if waiting is None:
            await self._transaction(removal)
            return None
        if waiting.outcome is not None:
            return None  # its dead letter is stored: the order is closed with the next commit of the offsets
        await self._transaction(removal, self._noted(SkipEvent(waiting.order, SkipOutcome.WITHDRAWN, at, by)))
        return waiting.order

    async def close(self, event: SkipEvent) -> None:
        """Note what became of an order, which waits no longer.

        :raises StoreUnavailable: whether it was noted is unknown.
        """
        await self._transaction(("HDEL", self._waiting, _field(event.order.position)), self._noted(event))

    async def waiting(self) -> list[WaitingSkip]:
        """The orders that wait. An order that can't be decoded hides no other.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: the key holds something else.
        """
        with self._corruption_named():
            [stored] = await self._gateway.call_multiplexed(("HGETALL", self._waiting))
        waiting = []
        for place, value in zip(stored[::2], stored[1::2], strict=True):
            try:
                waiting.append(_decoded(value))
            except _UNDECODABLE as error:
                if place not in self._undecodable:
                    self._undecodable.add(place)
                    log.warning("skip_order_undecodable", place=place.decode(errors="replace"), problem=str(error))
        return waiting

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
        except (ResponseError, *_UNDECODABLE) as error:
            raise StoreCorrupted(self._waiting, str(error)) from error


def _field(position: Position) -> str:
    return f"{position.topic}/{position.partition}/{position.offset}"


def _encoded(order: SkipOrder, outcome: SkipOutcome | None = None) -> str:
    at = order.position
    fields = [at.topic, at.partition, at.offset, order.reason, order.ordered_by, order.ordered_at]
    return json.dumps([*fields, outcome.name] if outcome else fields)


def _decoded(value: bytes) -> WaitingSkip:
    topic, partition, offset, reason, ordered_by, ordered_at, *outcome = json.loads(value)
    place = Position(str(topic), int(partition), int(offset))
    order = SkipOrder(place, str(reason), str(ordered_by), str(ordered_at))
    return WaitingSkip(order, SkipOutcome[outcome[0]] if outcome else None)


def _event(fields: dict[Any, Any]) -> SkipEvent:
    return SkipEvent(
        _decoded(fields[b"order"]).order,
        SkipOutcome[fields[b"outcome"].decode()],
        fields[b"at"].decode(),
        fields[b"by"].decode(),
    )
