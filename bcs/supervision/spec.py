"""What a supervisor is told about a child."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcs.supervision.actor import ActorContext
    from bcs.supervision.mailbox import Mailbox


class Restart(Enum):
    """When an attempt's end is followed by another attempt (OTP's restart types)."""

    PERMANENT = "permanent"  # always
    TRANSIENT = "transient"  # after a crash, a kill, a hang
    TEMPORARY = "temporary"  # never


class Strategy(Enum):
    """Whom a restart concerns (OTP's supervision strategies)."""

    ONE_FOR_ONE = "one_for_one"  # the child alone
    ONE_FOR_ALL = "one_for_all"  # every child
    REST_FOR_ONE = "rest_for_one"  # the child and those that started after it


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child of a supervisor.

    When `start` is the bound `run` of a Supervisor or DynamicSupervisor the child is a subtree: kills, snapshots and
    paths reach into it. So pass the bound method itself; a wrapper around it hides the subtree.

    :param name: unique among its siblings, without "/"
    :param start: runs one attempt
    :param restart: when to start it again
    :param shutdown_seconds: how long it may take after it was asked to stop, before it is cancelled
    :param start_timeout_seconds: how long it may take to report ready, before it is cancelled and tried again
    :param hang_seconds: how long it may be busy without a heartbeat before it is cancelled and started again; None:
        no watchdog. The clock runs only from the first heartbeat
    :param mailbox: its envelopes, kept over all attempts; one mailbox for one child
    """

    name: str
    start: Callable[[ActorContext[Any]], Awaitable[None]]
    _: KW_ONLY
    restart: Restart = Restart.PERMANENT
    shutdown_seconds: float = 5.0
    start_timeout_seconds: float = 30.0
    hang_seconds: float | None = None
    mailbox: Mailbox[Any] | None = None
