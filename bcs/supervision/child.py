"""The state of a child that a supervisor keeps from one attempt to the next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from bcs.supervision.actor import ActorContext
from bcs.supervision.attempt import Attempt, AttemptListener, Exit, Limits
from bcs.supervision.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bcs.supervision.backoff import Backoff
    from bcs.supervision.mailbox import Mailbox


class Child:
    """The state of a child.

    :param name: the name of the child, or its key
    :param mailbox: the child's mailbox, if the child has one
    """

    __slots__ = (
        "attempt",
        "done",
        "incarnation",
        "last_error",
        "mailbox",
        "name",
        "not_before",
        "restarts",
        "started",
        "step",
    )

    def __init__(self, name: str, mailbox: Mailbox[Any] | None) -> None:
        self.name = name
        self.mailbox = mailbox
        self.incarnation = 0
        self.restarts = 0
        self.last_error: str | None = None
        self.step = 0
        self.forget_run()

    def forget_run(self) -> None:
        """Reset the state that belongs to one run of the supervisor."""
        # Already None, except after a native cancellation before the task's first step: that task reported no end.
        self.attempt: Attempt | None = None
        self.done = False  # will not be started again
        self.started = False
        self.not_before = -math.inf

    def launch(
        self,
        path: str,
        start: Callable[[ActorContext[Any]], Awaitable[None]],
        limits: Limits,
        listener: AttemptListener,
    ) -> Attempt:
        """Make the next attempt.

        :param path: the path of the child
        :param start: the actor's function
        :param limits: the time limits
        :param listener: the supervisor of the child
        """
        self.restarts += self.started
        self.started = True
        self.incarnation += 1
        context = ActorContext(
            self.name, self.incarnation, self.mailbox, listener.attempt_ready, listener.attempt_waits
        )
        self.attempt = Attempt(path, context, start=start, mailbox=self.mailbox, limits=limits, listener=listener)
        return self.attempt

    def note_end(self, ended: Exit, backoff: Backoff) -> None:
        """Store how the attempt ended.

        :param ended: how the attempt ended
        :param backoff: has the time after which a ready attempt resets the wait
        """
        attempt, self.attempt = self.attempt, None
        if ended.abnormal and not ended.outside:
            self.last_error = ended.description
        if attempt is None:
            return
        ready_at = attempt.context.ready_at
        if ready_at is not None and attempt.context.clock() - ready_at >= backoff.reset_after_seconds:
            self.step = 0

    def next_delay(self, backoff: Backoff, random: Callable[[], float]) -> float:
        """Count a restart, and return the wait before the next attempt, in seconds.

        :param backoff: computes the wait
        :param random: returns a number from 0.0 to 1.0
        """
        self.step += 1
        return backoff.delay(self.step - 1, random)

    def node(self, kind: Literal["actor", "supervisor", "dynamic"], state: State, now: float) -> Snapshot:
        """The child's node in a snapshot.

        :param kind: the kind of the child
        :param state: the state to show when no attempt runs
        :param now: the current time, in seconds of anyio's clock
        """
        attempt, mailbox = self.attempt, self.mailbox
        busy_since = None if attempt is None else attempt.context.busy_since
        return Snapshot(
            name=self.name,
            kind=kind,
            state=state if attempt is None else attempt.state,
            incarnation=self.incarnation,
            restarts=self.restarts,
            last_error=self.last_error,
            mailbox_depth=0 if mailbox is None else mailbox.depth,
            mailbox_capacity=None if mailbox is None else mailbox.capacity,
            oldest_message_seconds=0.0 if mailbox is None else mailbox.oldest_age_seconds(now),
            busy_seconds=0.0 if busy_since is None else now - busy_since,
        )
