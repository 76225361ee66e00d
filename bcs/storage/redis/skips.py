"""Operators' orders to skip messages, in Redis: the orders that wait for the intake, and the history of all orders."""

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
from bcs.storage.redis.nodes import Nodes

log = structlog.stdlib.get_logger("bcs.skips")

_UNDECODABLE = (ValueError, LookupError, TypeError)
# Each order has two entries, one when it is placed and one when it is closed. Operators place few orders.
_HISTORY_ENTRIES = 10_000


class RedisSkips:
    """The orders to skip messages.

    :param key_prefix: the prefix of the keys.
    """

    def __init__(self, nodes: Nodes, *, key_prefix: str) -> None:
        self._nodes = nodes
        self._waiting = f"{key_prefix}{{intake}}:skips"
        self._history = f"{key_prefix}{{intake}}:skips:history"
        self._undecodable = set[bytes]()  # each is logged once

    async def order(self, order: SkipOrder) -> None:
        """Store an order. It replaces an earlier order for the same message.

        :raises StoreUnavailable: whether the order was stored is unknown.
        """
        event = SkipEvent(order, SkipOutcome.ORDERED, order.ordered_at, order.ordered_by)
        await self._transaction(
            ("HSET", self._waiting, _field(order.position), _encoded(order)), self._history_entry(event)
        )

    async def save_outcome(self, order: SkipOrder, outcome: SkipOutcome) -> None:
        """Store the outcome of an order, before the offset after its message is committed.

        :raises StoreUnavailable: whether the outcome was stored is unknown.
        """
        await self._transaction(("HSET", self._waiting, _field(order.position), _encoded(order, outcome)))

    async def withdraw(self, position: Position, *, at: str, by: str) -> SkipOrder | None:
        """Withdraw an order, also an order that can't be decoded.

        :param at: when, in RFC 3339.
        :param by: the operator.
        :returns: the order; None where no decodable order waits, or a replica has carried it out.
        :raises StoreUnavailable: whether the order was withdrawn is unknown.
        """
        with self._as_corruption():
            [stored] = await self._nodes.at(self._waiting).call_multiplexed(("HGET", self._waiting, _field(position)))
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
        await self._transaction(removal, self._history_entry(SkipEvent(waiting.order, SkipOutcome.WITHDRAWN, at, by)))
        return waiting.order

    async def close(self, event: SkipEvent) -> None:
        """Store how an order ended, and remove it from the waiting orders.

        :raises StoreUnavailable: whether this was stored is unknown.
        """
        await self._transaction(("HDEL", self._waiting, _field(event.order.position)), self._history_entry(event))

    async def waiting(self) -> list[WaitingSkip]:
        """The waiting orders. An order that can't be decoded is logged and left out.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: the key has another type.
        """
        with self._as_corruption():
            [stored] = await self._nodes.at(self._waiting).call_multiplexed(("HGETALL", self._waiting))
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
        """The history of orders, newest first.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: BCS did not write these entries.
        """
        with self._as_corruption():
            [entries] = await self._nodes.at(self._waiting).call(("XREVRANGE", self._history, "+", "-", "COUNT", limit))
            return [_event(dict(zip(fields[::2], fields[1::2], strict=True))) for _, fields in entries]

    def _history_entry(self, event: SkipEvent) -> Command:
        fields = ("order", _encoded(event.order), "outcome", event.outcome.name, "at", event.at, "by", event.by)
        return ("XADD", self._history, "MAXLEN", "~", _HISTORY_ENTRIES, "*", *fields)

    async def _transaction(self, *commands: Command) -> None:
        with self._as_corruption():
            await self._nodes.at(self._waiting).call(("MULTI",), *commands, ("EXEC",))

    @contextmanager
    def _as_corruption(self) -> Iterator[None]:
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
