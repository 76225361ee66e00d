"""What the two kinds of supervisors share: the loop they run in, and their place in the tree.

All decisions are made by one synchronous function, `_tick`, which looks at the attempts, does what is due, and says
when to look again. So no decision can be interrupted half-way, and none has to be undone on cancellation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from bcs.supervision.errors import RestartIntensityExceeded, UnexpectedCancellation, describe
from bcs.supervision.intensity import RestartIntensity, RestartWindow
from bcs.supervision.observer import NullObserver, Observer, notify
from bcs.supervision.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from bcs.supervision.actor import ActorContext
    from bcs.supervision.attempt import Attempt, Exit
    from bcs.supervision.backoff import Backoff


class BaseSupervisor(ABC):
    """A supervisor of some kind.

    :param name: for errors; its place in a path is the name of the ChildSpec that starts it
    :param intensity: when it gives up
    :param backoff: how long it waits before a restart
    :param random: a number from 0.0 to 1.0, for the jitter
    :param observer: whom it tells what happens; by default the observer of its parent
    :param kill_grace_seconds: how long an attempt may take to end after its cancellation
    """

    def __init__(
        self,
        name: str,
        *,
        intensity: RestartIntensity,
        backoff: Backoff,
        random: Callable[[], float],
        observer: Observer | None,
        kill_grace_seconds: float,
    ) -> None:
        self.name = name
        self._path = ""
        self._intensity = intensity
        self._window = RestartWindow(intensity)
        self._backoff = backoff
        self._random = random
        self._inherits_observer = observer is None
        self._observer: Observer = NullObserver() if observer is None else observer
        self._kill_grace_seconds = kill_grace_seconds
        self._incarnation = 0
        self._last_error: str | None = None
        self._context: ActorContext[Any] | None = None
        self._tasks: TaskGroup | None = None
        self._surroundings = Context()
        self._changed: anyio.Event | None = None
        self._finished = False
        self._failure: RestartIntensityExceeded | None = None
        self._fatal: BaseException | None = None

    async def run(self, context: ActorContext[Any]) -> None:
        """Run the children until a stop is asked for; the `start` of a ChildSpec. May be called again when it ended.

        Cancellation cancels all children and ends when they ended; the mailboxes keep their envelopes.

        :param context: of the attempt that this supervisor is
        :raises RestartIntensityExceeded: when it gave up, after it stopped its children
        :raises UnexpectedCancellation: when something natively cancelled a task of its own
        :raises RuntimeError: while it runs already
        """
        if self._context is not None:
            raise RuntimeError(f"{self.name} is running already")
        self._context = context
        self._window = RestartWindow(self._intensity)
        self._finished, self._failure, self._fatal = False, None, None
        self._incarnation += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._relay_stop, context)
                await self._loop(tasks)
                # What is left are unresponsive attempts; they may still end.
                tasks.cancel_scope.cancel()
        finally:
            self._context = None
            if self._fatal is not None:
                # SystemExit and its like pass from task to task this way. Raised in a task of its own, asyncio would
                # abandon the event loop there and then, and nothing would be cleaned up.
                raise self._fatal
        if self._failure is not None:
            raise self._failure
        if not self._finished:
            # The task group ended because a task of its own was natively cancelled, and swallowed that.
            raise UnexpectedCancellation(self._path or self.name)

    async def _loop(self, tasks: TaskGroup) -> None:
        self._tasks, self._surroundings = tasks, copy_context()
        try:
            self._begin()
            while True:
                self._changed = anyio.Event()
                due = self._tick(anyio.current_time())
                if self._finished:
                    return
                with anyio.CancelScope(deadline=due):
                    await self._changed.wait()
                # A change that came together with a cancellation: its attempts are going too, and nothing follows them.
                await checkpoint_if_cancelled()
        finally:
            # From here on no attempt can start: soon the task group takes no more tasks.
            self._tasks = self._changed = None

    @abstractmethod
    def _begin(self) -> None:
        """A run begins."""

    @abstractmethod
    def _tick(self, now: float) -> float:
        """Do what is due, set `_finished` when there is nothing more to do, and say when to look again."""

    @abstractmethod
    def kill(self, path: str, reason: str = "killed") -> bool:
        """Cancel an attempt; its supervisor treats that as a crash.

        :param path: of the actor, from below this supervisor
        :param reason: for the observer
        :returns: False when it does not run at the moment
        :raises UnknownChild: when nothing has that path
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """A picture of this supervisor and what is below it."""

    @abstractmethod
    def close(self) -> None:
        """Close all mailboxes here and below: no run will follow."""

    @property
    def healthy(self) -> bool:
        """False when an attempt here or below ignores its cancellation: only a new process helps."""
        return self.snapshot().healthy

    def attach(self, path: str, observer: Observer) -> None:
        """Take a place in a tree. The parent's side.

        :param path: of this supervisor
        :param observer: of the parent
        """
        self._path = path
        if self._inherits_observer:
            self._observer = observer

    @abstractmethod
    def attempt_ready(self) -> None:
        """See `AttemptListener`."""

    def attempt_changed(self) -> None:
        """See `AttemptListener`."""
        if self._changed is not None:
            self._changed.set()

    def attempt_unresponsive(self, attempt: Attempt) -> None:
        """See `AttemptListener`."""
        notify(self._observer.actor_unresponsive, attempt.path)

    def attempt_ended(self, attempt: Attempt, ended: Exit) -> None:
        """See `AttemptListener`."""
        self._note_end(attempt, ended)
        notify(self._observer.actor_ended, attempt.path, attempt.context.incarnation, ended.reason, ended.error)
        if ended.fatal and self._fatal is None:
            self._fatal = ended.error
            self.attempt_changed()
        elif not ended.outside:
            self._follow_up(attempt, ended)

    @abstractmethod
    def _note_end(self, attempt: Attempt, ended: Exit) -> None:
        """Keep what is worth keeping of an attempt that ended."""

    @abstractmethod
    def _follow_up(self, attempt: Attempt, ended: Exit) -> None:
        """Decide what comes after an attempt that ended while this supervisor runs."""

    @property
    def _ending(self) -> bool:
        """Whether this run is to end: a stop was asked for, or it gave up."""
        return self._context is None or self._context.stopping or self._failure is not None

    def _path_of(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def _set_off(self, attempt: Attempt) -> None:
        """Start the task of an attempt. It inherits from this supervisor, not from a sender whose envelope made it."""
        notify(self._observer.actor_started, attempt.path, attempt.context.incarnation)
        if self._tasks is not None:
            self._surroundings.copy().run(partial(self._tasks.start_soon, attempt.run, name=attempt.path))

    def _may_restart(self, last_error: str) -> bool:
        """Count a restart; when it is one too many, give up."""
        if self._window.allow(anyio.current_time()):
            return True
        limit = self._intensity
        self._failure = RestartIntensityExceeded(self.name, limit.max_restarts, limit.period_seconds, last_error)
        self._last_error = describe(self._failure)
        notify(self._observer.intensity_exceeded, self._path)
        return False

    def _state(self) -> State:
        if self._context is None:
            return State.IDLE
        if self._context.stopping or self._failure is not None or self._fatal is not None:
            return State.STOPPING
        return State.STARTING if self._context.ready_at is None else State.RUNNING

    async def _relay_stop(self, context: ActorContext[Any]) -> None:
        await context.wait_stopping()
        self.attempt_changed()
