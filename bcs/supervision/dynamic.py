"""A supervisor of many children of one kind; a child exists only while there is work for it."""

from __future__ import annotations

import math
import random as random_module
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from bcs.supervision.attempt import Attempt, Exit, Limits
from bcs.supervision.backoff import DEFAULT_BACKOFF, Backoff
from bcs.supervision.base_supervisor import BaseSupervisor
from bcs.supervision.clock import LoopClock
from bcs.supervision.errors import UnknownChild
from bcs.supervision.intensity import DEFAULT_INTENSITY, RestartIntensity
from bcs.supervision.keyed import KeyedChild, KeyedChildren
from bcs.supervision.load import Load
from bcs.supervision.mailbox import Mailbox
from bcs.supervision.observer import Observer, notify
from bcs.supervision.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bcs.supervision.actor import ActorContext
    from bcs.supervision.envelope import Reply

M = TypeVar("M")
T = TypeVar("T")


class DynamicSupervisor(BaseSupervisor, Generic[M]):
    """Children by key: a message for a key makes the child, and the child ends when its mailbox is empty.

    A child whose attempt fails restarts after a back-off if envelopes are left. Messages that arrive while this
    supervisor does not run stay in the mailboxes; the next run serves them.

    :param name: for errors
    :param start: runs one attempt of a child, usually with `serve_until_empty`; `context.name` is the key. The attempt
        must work until the mailbox is empty: a return with envelopes left, and none acked, counts as a crash
    :param mailbox_capacity: the maximum number of envelopes that queue for one child
    :param max_deliveries: an envelope is given up after this number of deliveries that ended in a crash or a hang
    :param max_children: the maximum number of children at a time
    :param max_running: the number of children that run at a time. The others wait for their turn with their envelopes,
        first come, first served. An ask starts its child at once. A child that is unresponsive, or has called
        `ActorContext.give_turn`, does not count
    :param shutdown_seconds: the time that all children together have to empty their mailboxes after a stop request
    :param hang_seconds: the time that a child may be busy without a heartbeat. The check may be late by a tenth of it
    :param intensity: the number of restarts, of all children together, after which the supervisor gives up
    :param backoff: the wait before a restart
    :param random: returns a number from 0.0 to 1.0, for the jitter
    :param observer: receives the events; by default the observer of the parent
    :param kill_grace_seconds: the time that a cancelled attempt has to end
    """

    # Enough for the children that a burst of messages starts together; an idle task takes some kilobytes.
    _most_idle_tasks = 256

    def __init__(
        self,
        name: str,
        start: Callable[[ActorContext[M]], Awaitable[None]],
        *,
        mailbox_capacity: float,
        max_children: int,
        max_running: float = math.inf,
        max_deliveries: int = 3,
        shutdown_seconds: float = 5.0,
        hang_seconds: float | None = None,
        intensity: RestartIntensity = DEFAULT_INTENSITY,
        backoff: Backoff = DEFAULT_BACKOFF,
        random: Callable[[], float] = random_module.random,
        observer: Observer | None = None,
        kill_grace_seconds: float = 1.0,
    ) -> None:
        super().__init__(
            name,
            intensity=intensity,
            backoff=backoff,
            random=random,
            observer=observer,
            kill_grace_seconds=kill_grace_seconds,
        )
        self._start = start
        self._shutdown_seconds = shutdown_seconds
        self._limits = Limits(math.inf, hang_seconds, kill_grace_seconds)
        clock = LoopClock()
        self._load = load = Load()
        self._children: KeyedChildren[M] = KeyedChildren(
            name,
            lambda key: Mailbox(f"{name}/{key}", mailbox_capacity, max_deliveries, clock=clock, load=load),
            max_children,
            self._wake,
        )
        self._max_running = max_running
        self._attempts: set[Attempt] = set()
        self._without_turn: set[Attempt] = set()  # the attempts that do not count
        self._waiting: OrderedDict[KeyedChild[M], None] = OrderedDict()  # the children that wait for their turn
        self._unresponsive: dict[str, None] = {}  # the keys of the children, in order
        self._stop_by: float | None = None  # set when the children must empty their mailboxes and end
        self._halted = False  # no more attempts in this run

    def deliver_nowait(self, key: str, message: M) -> None:
        """Put a message into a child's mailbox, and make the child if it does not exist.

        :param key: the key of the child
        :param message: the message
        :raises MailboxFull: when the mailbox is full, or a new child is needed and there are `max_children` already
        :raises MailboxClosed: after the end of the tree
        """
        self._children.deliver_nowait(key, message)

    async def deliver(self, key: str, message: M) -> None:
        """Put a message into a child's mailbox, and wait for room if there is none (back-pressure).

        A call that is cancelled while it waits does not deliver the message.

        :param key: the key of the child
        :param message: the message
        :raises MailboxClosed: after the end of the tree, also in calls that already wait
        """
        await self._children.deliver(key, message)

    async def ask(self, key: str, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """Ask a child, and make the child if it does not exist; see `Mailbox.ask`.

        :param key: the key of the child
        :param build: makes the message from a reply
        :param timeout_seconds: one deadline for the whole call
        :raises MailboxFull: at once, for the same reasons as `deliver_nowait`
        :raises SupervisionError: for the same reasons as `Mailbox.ask`
        """
        return await self._children.ask(key, build, timeout_seconds)

    def kill(self, path: str, reason: str = "killed") -> bool:
        """Cancel a child's attempt; the supervisor handles that like a crash.

        :param path: the key of the child
        :param reason: the reason to report to the observer
        :returns: False when the child does not run at the moment
        :raises UnknownChild: when there is no such child now
        """
        child = self._children.by_key.get(path)
        if child is None:
            raise UnknownChild(self.name, path)
        return child.attempt is not None and child.attempt.cancel(reason)

    def snapshot(self) -> Snapshot:
        """A snapshot with at most a hundred children, the unresponsive ones first. Call it on the event loop only."""
        now = anyio.current_time()
        return Snapshot(
            self.name,
            kind="dynamic",
            state=self._state(),
            incarnation=self._incarnation,
            last_error=self._last_error,
            mailbox_depth=len(self._load),
            oldest_message_seconds=self._load.oldest_age_seconds(now),
            intensity_used=self._window.used(now),
            children=self._children.nodes(self._unresponsive, now, running=self._tasks is not None),
            total_children=len(self._children.by_key),
        )

    def close(self) -> None:
        """Close all mailboxes, because no run will follow."""
        self._children.close()

    def attempt_ready(self) -> None:
        """See `AttemptListener`: no other child waits for this one."""

    def attempt_unresponsive(self, attempt: Attempt) -> None:
        """See `AttemptListener`."""
        self._unresponsive[attempt.context.name] = None
        self._without_turn.add(attempt)
        super().attempt_unresponsive(attempt)
        self._start_waiting()

    def attempt_waits(self, name: str) -> None:
        """See `AttemptListener`: another child may run in the place of this one."""
        attempt = self._children.by_key[name].attempt
        if attempt in self._attempts:
            self._without_turn.add(attempt)
            self._start_waiting()

    def _begin(self) -> None:
        self._stop_by, self._halted = None, False
        self._attempts.clear()
        self._without_turn.clear()
        self._unresponsive.clear()
        self._waiting.clear()
        children = list(self._children.by_key.values())
        for child in children:
            child.forget_run()
        for child in children:
            self._wake(child, False)

    def _tick(self, now: float) -> float:
        if self._context is not None:
            self._context.ready()
        if self._stop_by is None and self._state() is State.STOPPING:
            self._stop_by = now + self._shutdown_seconds
            for attempt in self._attempts:
                attempt.request_stop(self._stop_by)
        due = self._enforce(now)
        if self._stop_by is not None and now >= self._stop_by:
            self._halted = True
        elif self._stop_by is not None:
            due = min(due, self._stop_by)
        self._finished = self._fatal is not None or self._stopped()
        return due

    def _enforce(self, now: float) -> float:
        """Enforce the limits of all attempts, and return the time of the next check."""
        kills, hangs = math.inf, math.inf
        for attempt in list(self._attempts):
            due = attempt.enforce(now)
            if attempt.cancelled:
                kills = min(kills, due)
            else:
                hangs = min(hangs, due)
        if (hang_seconds := self._limits.hang_seconds) is not None:
            # Later attempts have the full time. One check covers many attempts, because there may be thousands.
            hangs = min(max(hangs, now + hang_seconds / 10), now + hang_seconds)
        return min(kills, hangs)

    def _stopped(self) -> bool:
        # Do not wait for unresponsive attempts.
        if self._stop_by is None or any(not attempt.unresponsive for attempt in self._attempts):
            return False
        return self._halted or len(self._children.by_key) == len(self._attempts)

    def _wake(self, child: KeyedChild[M], at_once: bool) -> None:
        # By now the child may have handled an envelope that waited for room, and may be retired.
        if child.attempt is None and not child.backing_off and self._children.by_key.get(child.name) is child:
            if at_once or (self._has_room and not self._waiting):
                self._launch(child)
            else:
                self._waiting[child] = None

    @property
    def _has_room(self) -> bool:
        """True if another child may run."""
        return len(self._attempts) - len(self._without_turn) < self._max_running

    def _start_waiting(self) -> None:
        """Start the children that waited for their turn, as many as may run."""
        while self._waiting and self._has_room:
            child, _ = self._waiting.popitem(last=False)
            self._wake(child, True)

    def _launch(self, child: KeyedChild[M]) -> None:
        if self._tasks is None or self._halted:
            return
        attempt = child.launch(self._path_of(child.name), self._start, self._limits, self)
        attempt.context.heartbeat()
        if self._stop_by is not None:
            attempt.request_stop(self._stop_by)
        self._attempts.add(attempt)
        self._set_off(attempt)

    def _note_end(self, attempt: Attempt, ended: Exit) -> None:
        child = self._children.by_key[attempt.context.name]
        child.note_end(ended, self._backoff)
        # Set until `_follow_up` decides: the observer may send an envelope in between, which must not start the child.
        child.backing_off = True
        self._last_error = child.last_error or self._last_error
        self._attempts.discard(attempt)
        self._without_turn.discard(attempt)
        self._unresponsive.pop(attempt.context.name, None)
        if not child.own_mailbox.depth:
            self._children.remove(child)

    def _follow_up(self, attempt: Attempt, ended: Exit) -> None:
        child = self._children.by_key.get(attempt.context.name)
        if child is not None and not child.backing_off:
            child = None  # the child that ended is retired; an observer's envelope made this new one
        idle = child is not None and attempt.context.acked == 0
        if not self._halted and (ended.abnormal or idle):
            if not self._may_restart(ended.description):
                self._halted = True
                self.attempt_changed()
            elif child is not None and self._tasks is not None:
                delay = child.next_delay(self._backoff, self._random)
                notify(self._observer.actor_restarting, attempt.path, delay)
                self._tasks.start_soon(self._wake_later, child, delay)
        elif child is not None:
            child.backing_off = False
            self._wake(child, False)
        self._start_waiting()
        if self._stopped():
            self.attempt_changed()

    async def _wake_later(self, child: KeyedChild[M], delay_seconds: float) -> None:
        await anyio.sleep(delay_seconds)
        child.backing_off = False
        self._wake(child, False)
