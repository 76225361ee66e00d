"""The errors of a tree of actors.

Exception
└── SupervisionError               retryable: True if the same call may succeed later
    ├── MailboxFull                yes: the actor is slower than its senders
    ├── MailboxClosed              no: the tree has ended
    ├── AskTimeout                 yes: no answer within the deadline
    ├── ActorDied                  yes: the target of an ask died before it answered
    ├── RestartIntensityExceeded   no: a supervisor gave up and passes the failure to its parent
    ├── UnknownChild               no: no child has this path
    └── UnexpectedCancellation     yes: a library leaked a native cancellation; counts as a crash
"""

from __future__ import annotations

from typing import ClassVar


class SupervisionError(Exception):
    """The base class of all errors of this package."""

    retryable: ClassVar[bool] = False


class MailboxFull(SupervisionError):
    """The mailbox is full, or the dynamic supervisor has no place for one more child.

    :param mailbox: the name of the mailbox, or of the supervisor
    :param capacity: the maximum number of envelopes, or of children
    """

    retryable = True

    def __init__(self, mailbox: str, capacity: float) -> None:
        super().__init__(f"{mailbox}: full at {capacity}")
        self.mailbox = mailbox
        self.capacity = capacity


class MailboxClosed(SupervisionError):
    """The mailbox accepts no more envelopes.

    :param mailbox: the name of the mailbox
    """

    def __init__(self, mailbox: str) -> None:
        super().__init__(f"{mailbox}: closed")
        self.mailbox = mailbox


class AskTimeout(SupervisionError):
    """An ask ended without an answer.

    :param mailbox: the name of the mailbox that was asked
    :param timeout_seconds: the deadline of the ask
    """

    retryable = True

    def __init__(self, mailbox: str, timeout_seconds: float) -> None:
        super().__init__(f"{mailbox}: no answer within {timeout_seconds} s")
        self.mailbox = mailbox
        self.timeout_seconds = timeout_seconds


class ActorDied(SupervisionError):
    """The target of an ask died before it replied.

    :param actor: the path of the actor
    :param reason: the reason of its end
    """

    retryable = True

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(f"{actor}: died ({reason})")
        self.actor = actor
        self.reason = reason


class RestartIntensityExceeded(SupervisionError):
    """A supervisor gave up after too many restarts.

    :param supervisor: the name of the supervisor
    :param restarts: the number of restarts that are allowed
    :param period_seconds: the period for which that number holds
    :param last_error: the failure that exceeded the limit
    """

    def __init__(self, supervisor: str, restarts: int, period_seconds: float, last_error: str) -> None:
        super().__init__(f"{supervisor}: more than {restarts} restarts in {period_seconds} s; last: {last_error}")
        self.supervisor = supervisor
        self.restarts = restarts
        self.period_seconds = period_seconds
        self.last_error = last_error


class UnknownChild(SupervisionError):
    """The supervisor has no child with this name.

    :param supervisor: the name of the supervisor
    :param name: the name, the path, or the key that was looked up
    """

    def __init__(self, supervisor: str, name: str) -> None:
        super().__init__(f"{supervisor}: has no child {name!r}")
        self.supervisor = supervisor
        self.name = name


class UnexpectedCancellation(SupervisionError):
    """A native cancellation ended an actor, although its supervisor had not cancelled the actor.

    :param actor: the path of the actor
    """

    retryable = True

    def __init__(self, actor: str) -> None:
        super().__init__(f"{actor}: a native cancellation leaked out of the actor, but nothing had cancelled the actor")
        self.actor = actor


def describe(error: BaseException) -> str:
    """Describe an error, or the errors of a group, in one line. A snapshot stores this text and no tracebacks.

    :param error: the error
    """
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({'; '.join(describe(leaf) for leaf in error.exceptions)})"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
