"""The specification of a child."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcs.supervision.actor import ActorContext
    from bcs.supervision.mailbox import Mailbox


class Restart(Enum):
    """The cases in which a child restarts after the end of an attempt (OTP's restart types)."""

    PERMANENT = "permanent"  # always
    TRANSIENT = "transient"  # after a crash, a kill, a hang
    TEMPORARY = "temporary"  # never


class Strategy(Enum):
    """The children that restart together (OTP's supervision strategies)."""

    ONE_FOR_ONE = "one_for_one"  # only the child
    ONE_FOR_ALL = "one_for_all"  # every child
    REST_FOR_ONE = "rest_for_one"  # the child and the children after it


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child of a supervisor.

    If `start` is the bound method `run` of a Supervisor or DynamicSupervisor, the child is a subtree: kills, snapshots
    and paths reach into it. Pass the bound method itself, because a wrapper hides the subtree.

    :param name: unique among the siblings, without "/"
    :param start: runs one attempt
    :param restart: the cases in which the child restarts
    :param shutdown_seconds: the time from a stop request to the cancellation of an attempt that still runs
    :param start_timeout_seconds: the time to report ready; after that the attempt is cancelled and restarted
    :param hang_seconds: the time that an attempt may be busy without a heartbeat; after that the attempt is cancelled
        and restarted. The watchdog starts with the first heartbeat. None: no watchdog
    :param mailbox: the mailbox of the child, for all its attempts; two children must not share a mailbox
    """

    name: str
    start: Callable[[ActorContext[Any]], Awaitable[None]]
    _: KW_ONLY
    restart: Restart = Restart.PERMANENT
    shutdown_seconds: float = 5.0
    start_timeout_seconds: float = 30.0
    hang_seconds: float | None = None
    mailbox: Mailbox[Any] | None = None
