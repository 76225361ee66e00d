"""What can go wrong in a tree of actors.

Exception
└── SupervisionError               retryable says whether the same call may succeed later
    ├── MailboxFull                yes: the actor is slower than its senders
    ├── MailboxClosed              no: the tree has ended
    ├── AskTimeout                 yes: no answer within the deadline
    ├── ActorDied                  yes: the target of an ask died before it answered
    ├── RestartIntensityExceeded   no: a supervisor gave up and hands the failure to its parent
    ├── UnknownChild               no: a path that names nothing
    └── UnexpectedCancellation     yes: a library leaked a native cancellation; counts as a crash
"""

from __future__ import annotations

from typing import ClassVar


class SupervisionError(Exception):
    """The root of everything this package raises."""

    retryable: ClassVar[bool] = False


class MailboxFull(SupervisionError):
    """The mailbox holds as many envelopes as it may.

    :param mailbox: its name
    :param capacity: how many envelopes (or, for a dynamic supervisor, children) it may hold
    """

    retryable = True

    def __init__(self, mailbox: str, capacity: float) -> None:
        super().__init__(f"{mailbox}: full at {capacity}")
        self.mailbox = mailbox
        self.capacity = capacity


class MailboxClosed(SupervisionError):
    """The mailbox takes no more envelopes.

    :param mailbox: its name
    """

    def __init__(self, mailbox: str) -> None:
        super().__init__(f"{mailbox}: closed")
        self.mailbox = mailbox


class AskTimeout(SupervisionError):
    """An ask ended without an answer.

    :param mailbox: the name of the mailbox that was asked
    :param timeout_seconds: how long the asker was ready to wait
    """

    retryable = True

    def __init__(self, mailbox: str, timeout_seconds: float) -> None:
        super().__init__(f"{mailbox}: no answer within {timeout_seconds} s")
        self.mailbox = mailbox
        self.timeout_seconds = timeout_seconds


class ActorDied(SupervisionError):
    """The target of an ask died before it replied.

    :param actor: its path
    :param reason: what ended it
    """

    retryable = True

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(f"{actor}: died ({reason})")
        self.actor = actor
        self.reason = reason


class RestartIntensityExceeded(SupervisionError):
    """A supervisor saw more restarts than it may and gave up.

    :param supervisor: its name
    :param restarts: how many restarts were allowed
    :param period_seconds: within which time
    :param last_error: the failure that was one too many
    """

    def __init__(self, supervisor: str, restarts: int, period_seconds: float, last_error: str) -> None:
        super().__init__(f"{supervisor}: more than {restarts} restarts in {period_seconds} s; last: {last_error}")
        self.supervisor = supervisor
        self.restarts = restarts
        self.period_seconds = period_seconds
        self.last_error = last_error


class UnknownChild(SupervisionError):
    """No such child.

    :param supervisor: where it was looked for
    :param name: what was looked for
    """

    def __init__(self, supervisor: str, name: str) -> None:
        super().__init__(f"{supervisor}: has no child {name!r}")
        self.supervisor = supervisor
        self.name = name


class UnexpectedCancellation(SupervisionError):
    """A native cancellation came out of an actor that nobody had cancelled.

    :param actor: its path
    """

    retryable = True

    def __init__(self, actor: str) -> None:
        super().__init__(f"{actor}: a native cancellation leaked out of it, though nothing had cancelled it")
        self.actor = actor


def describe(error: BaseException) -> str:
    """One line about an error, with the leaves of a group: what a snapshot keeps, for it must not keep tracebacks.

    :param error: what was raised
    """
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({'; '.join(describe(leaf) for leaf in error.exceptions)})"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
