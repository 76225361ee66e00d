"""Offsets that an operator orders the intake to pass over, and what became of the orders."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bcs.domain.history import Position


@dataclass(frozen=True, slots=True)
class SkipOrder:
    """An operator wants the intake to pass over one message.

    :param ordered_by: who, as far as the command can tell.
    :param ordered_at: when, in RFC 3339.
    """

    position: Position
    reason: str
    ordered_by: str
    ordered_at: str


class SkipOutcome(StrEnum):
    """What became of an order."""

    ORDERED = "ordered"
    WITHDRAWN = "withdrawn"
    SKIPPED = "skipped, dead letter with its bytes"
    SKIPPED_UNREAD = "skipped, dead letter with its position only"
    ALREADY_PROCESSED = "not skipped, it was processed before"


@dataclass(frozen=True, slots=True)
class WaitingSkip:
    """An order that is not closed yet.

    :param outcome: what a replica did for it. The order is closed once the offset behind its message is committed;
        until then the message may be read again, and is passed over again.
    """

    order: SkipOrder
    outcome: SkipOutcome | None = None


@dataclass(frozen=True, slots=True)
class SkipEvent:
    """An entry of the history of orders.

    :param at: when, in RFC 3339.
    :param by: who did it: the operator, or the replica that carried the order out.
    """

    order: SkipOrder
    outcome: SkipOutcome
    at: str
    by: str
