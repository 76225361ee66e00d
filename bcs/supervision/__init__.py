"""Supervision as in OTP, on anyio: actors with mailboxes, and supervisors that restart them.

The package does not import the service. It needs anyio and the standard library only, and runs on asyncio, uvloop and
trio. Every object belongs to one event loop: do not call anything from another thread.
"""

from bcs.supervision.actor import ActorContext, serve, serve_until_empty
from bcs.supervision.backoff import Backoff
from bcs.supervision.base_supervisor import BaseSupervisor
from bcs.supervision.dynamic import DynamicSupervisor
from bcs.supervision.envelope import Envelope, Reply
from bcs.supervision.errors import (
    ActorDied,
    AskTimeout,
    MailboxClosed,
    MailboxFull,
    RestartIntensityExceeded,
    SupervisionError,
    UnexpectedCancellation,
    UnknownChild,
    describe,
)
from bcs.supervision.intensity import RestartIntensity, RestartWindow
from bcs.supervision.mailbox import Mailbox
from bcs.supervision.observer import NullObserver, Observer
from bcs.supervision.snapshot import Snapshot, State
from bcs.supervision.spec import ChildSpec, Restart, Strategy
from bcs.supervision.supervisor import Supervisor
from bcs.supervision.tree import run_tree

__all__ = [
    # trees
    "ChildSpec",
    "Restart",
    "Strategy",
    "Supervisor",
    "DynamicSupervisor",
    "BaseSupervisor",
    "run_tree",
    "RestartIntensity",
    "RestartWindow",
    "Backoff",
    # actors
    "ActorContext",
    "serve",
    "serve_until_empty",
    "Mailbox",
    "Envelope",
    "Reply",
    # observation
    "Observer",
    "NullObserver",
    "Snapshot",
    "State",
    # errors
    "SupervisionError",
    "MailboxFull",
    "MailboxClosed",
    "AskTimeout",
    "ActorDied",
    "RestartIntensityExceeded",
    "UnknownChild",
    "UnexpectedCancellation",
    "describe",
]
