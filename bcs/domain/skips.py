"""Operators' orders to skip a Kafka message, and how each order ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bcs.domain.history import Position


@dataclass(frozen=True, slots=True)
class SkipOrder:
    """An operator's order that the intake skips one message.

    :param ordered_by: the operator, as far as the command can identify them.
    :param ordered_at: when, in RFC 3339.
    """

    position: Position
    reason: str
    ordered_by: str
    ordered_at: str


class SkipOutcome(StrEnum):
    """How an order ended, or that it was placed."""

    ORDERED = "ordered"
    WITHDRAWN = "withdrawn"
    SKIPPED = "skipped, dead letter with its bytes"
    SKIPPED_UNREAD = "skipped, dead letter with its position only"
    ALREADY_PROCESSED = "not skipped, it was processed before"


@dataclass(frozen=True, slots=True)
class WaitingSkip:
    """An order that is not closed yet.

    :param outcome: what a replica did with the message. The order is closed once the offset after the message is
        committed; until then the message may be read again, and is skipped again.
    """

    order: SkipOrder
    outcome: SkipOutcome | None = None


@dataclass(frozen=True, slots=True)
class SkipEvent:
    """An entry of the history of orders.

    :param at: when, in RFC 3339.
    :param by: the operator, or the replica that carried out the order.
    """

    order: SkipOrder
    outcome: SkipOutcome
    at: str
    by: str
