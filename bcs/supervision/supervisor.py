"""A supervisor with a fixed list of children."""

from __future__ import annotations

import math
import random as random_module
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from bcs.supervision.attempt import Attempt, Exit, Limits
from bcs.supervision.backoff import DEFAULT_BACKOFF, Backoff
from bcs.supervision.base_supervisor import BaseSupervisor
from bcs.supervision.child import Child
from bcs.supervision.errors import UnknownChild
from bcs.supervision.intensity import DEFAULT_INTENSITY, RestartIntensity
from bcs.supervision.observer import Observer, notify
from bcs.supervision.snapshot import Snapshot, State
from bcs.supervision.spec import ChildSpec, Restart, Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class StaticChild(Child):
    """A child with a specification.

    :param index: the position among the siblings
    :param spec: the specification
    """

    __slots__ = ("index", "spec", "subtree")

    def __init__(self, index: int, spec: ChildSpec) -> None:
        super().__init__(spec.name, spec.mailbox)
        self.index = index
        self.spec = spec
        bound_to = getattr(spec.start, "__self__", None)
        self.subtree = bound_to if isinstance(bound_to, BaseSupervisor) else None


class Supervisor(BaseSupervisor):
    """Starts its children in order, restarts them by restart type and strategy, and stops them in reverse order.

    :param name: for errors, and for snapshots of the root
    :param children: the specifications of the children
    :param strategy: the children that restart together
    :param intensity: the number of restarts after which the supervisor gives up and passes the failure to its parent
    :param backoff: the wait before a restart
    :param random: returns a number from 0.0 to 1.0, for the jitter
    :param observer: receives the events; by default the observer of the parent
    :param kill_grace_seconds: the time that a cancelled attempt has to end
    :raises ValueError: for names that are empty, not unique, or contain "/", and if two children share a mailbox or a
        supervisor
    """

    def __init__(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
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
        self._strategy = strategy
        self._children = [StaticChild(index, spec) for index, spec in enumerate(children)]
        self._by_name = {child.name: child for child in self._children}
        owned = [id(thing) for child in self._children for thing in (child.mailbox, child.subtree) if thing is not None]
        if len(self._by_name) < len(children) or len(set(owned)) < len(owned):
            raise ValueError(f"{name}: two children share a name, a mailbox, or a supervisor")
        if any("/" in child.name or not child.name for child in self._children):
            raise ValueError(f'{name}: the name of a child must not be empty and must not contain "/"')
        self._halting: int | None = None  # children from this index on are being stopped
        self._delay = 0.0  # and restart after this wait
        self.attach("", self._observer)

    def attach(self, path: str, observer: Observer) -> None:
        """Set the place of this supervisor in a tree, and of the supervisors below it.

        :param path: the path of this supervisor
        :param observer: the observer of the parent
        """
        super().attach(path, observer)
        for child in self._children:
            if child.subtree is not None:
                child.subtree.attach(self._path_of(child.name), self._observer)

    def kill(self, path: str, reason: str = "killed") -> bool:
        """Cancel an attempt; its supervisor handles that like a crash. A killed supervisor ends everything below it.

        :param path: like "intake" or "batches/router"; below a dynamic supervisor the rest of the path is the key
        :param reason: the reason to report to the observer
        :returns: False when the actor does not run at the moment
        :raises UnknownChild: when no child has that path
        """
        name, slash, rest = path.partition("/")
        child = self._by_name.get(name)
        if child is None:
            raise UnknownChild(self.name, name)
        if not slash:
            return child.attempt is not None and child.attempt.cancel(reason)
        if child.subtree is None:
            raise UnknownChild(self._path_of(name), rest)
        return child.subtree.kill(rest, reason)

    def snapshot(self) -> Snapshot:
        """A snapshot of this supervisor and of everything below it. Call it on the event loop only."""
        now = anyio.current_time()
        return Snapshot(
            name=self.name,
            kind="supervisor",
            state=self._state(),
            incarnation=self._incarnation,
            last_error=self._last_error,
            intensity_used=self._window.used(now),
            children=tuple(self._node(child, now) for child in self._children),
            total_children=len(self._children),
        )

    def close(self) -> None:
        """Close all mailboxes here and below, because no run will follow."""
        for child in self._children:
            if child.mailbox is not None:
                child.mailbox.close()
            if child.subtree is not None:
                child.subtree.close()

    def attempt_ready(self) -> None:
        """See `AttemptListener`: the next child may start."""
        self.attempt_changed()

    def attempt_waits(self, name: str) -> None:
        """See `AttemptListener`: no child waits for its turn."""

    def _begin(self) -> None:
        self._halting, self._delay = None, 0.0
        for child in self._children:
            child.forget_run()

    def _tick(self, now: float) -> float:
        if self._ending:
            self._halting = 0
        if self._fatal is not None or (self._halting is not None and self._all_halted() and self._ending):
            self._finished = True
            return now
        due = math.inf if self._halting is not None else self._start_due(now)
        return min([due, *(child.attempt.enforce(now) for child in self._children if child.attempt is not None)])

    def _all_halted(self) -> bool:
        """Stop the last affected child that runs. If none runs, schedule the restarts and return True."""
        affected = self._children[self._halting :]
        now = anyio.current_time()
        for child in reversed(affected):
            if child.attempt is None:
                continue
            # An unresponsive attempt is asked too: when it ends at last, that end belongs to this restart.
            child.attempt.request_stop(now + child.spec.shutdown_seconds)
            if not child.attempt.unresponsive:
                return False
        for child in affected:
            # As in OTP: a transient child that had returned starts again with its group, a temporary one does not.
            child.done = child.started and child.spec.restart is Restart.TEMPORARY
            # A group restart must not shorten the wait that a child already has.
            child.not_before = max(child.not_before, now + self._delay)
        self._halting, self._delay = None, 0.0
        return True

    def _start_due(self, now: float) -> float:
        """Start the children that are due, and return the time at which the next child is due."""
        due = math.inf
        all_ready = True
        for child in self._children:
            if child.done:
                continue
            if child.attempt is not None:
                all_ready = all_ready and child.attempt.ready
                continue
            # A restart under one_for_one does not wait; every other start waits until the earlier children are ready.
            if all_ready or (child.started and self._strategy is Strategy.ONE_FOR_ONE):
                if child.not_before <= now:
                    self._launch(child)
                else:
                    due = min(due, child.not_before)
            all_ready = False
        if all_ready and self._context is not None:
            self._context.ready()
        return due

    def _launch(self, child: StaticChild) -> None:
        spec = child.spec
        limits = Limits(spec.start_timeout_seconds, spec.hang_seconds, self._kill_grace_seconds)
        self._set_off(child.launch(self._path_of(child.name), spec.start, limits, self))

    def _note_end(self, attempt: Attempt, ended: Exit) -> None:
        self._by_name[attempt.context.name].note_end(ended, self._backoff)

    def _follow_up(self, attempt: Attempt, ended: Exit) -> None:
        self.attempt_changed()
        child = self._by_name[attempt.context.name]
        if self._ending or attempt.asked_to_stop or (self._halting is not None and child.index >= self._halting):
            return  # the child restarts with its group, or not at all
        restart = child.spec.restart
        if restart is Restart.TEMPORARY or (restart is Restart.TRANSIENT and not ended.abnormal):
            child.done = True
        elif self._may_restart(ended.description):
            delay = child.next_delay(self._backoff, self._random)
            if self._strategy is Strategy.ONE_FOR_ONE:
                child.not_before = anyio.current_time() + delay
            else:
                # Children that are already stopping have a higher index, so they stay in the group.
                self._halting = 0 if self._strategy is Strategy.ONE_FOR_ALL else child.index
                self._delay = max(self._delay, delay)
            notify(self._observer.actor_restarting, attempt.path, delay)

    def _node(self, child: StaticChild, now: float) -> Snapshot:
        idle = State.IDLE
        if child.done:
            idle = State.ENDED
        elif child.started and self._state() in (State.STARTING, State.RUNNING):
            idle = State.BACKING_OFF
        if child.subtree is None:
            return child.node("actor", idle, now)
        below = child.subtree.snapshot()
        own = child.node(below.kind, idle, now)
        return replace(
            own,
            last_error=own.last_error or below.last_error,
            mailbox_depth=own.mailbox_depth + below.mailbox_depth,
            oldest_message_seconds=max(own.oldest_message_seconds, below.oldest_message_seconds),
            intensity_used=below.intensity_used,
            children=below.children,
            total_children=below.total_children,
        )
