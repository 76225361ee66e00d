"""Tasks that run attempts: a task whose attempt returned runs the next one, because a new task costs more to start."""

from __future__ import annotations

import asyncio
import math
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from anyio.abc import TaskGroup

    from bcs.supervision.attempt import Attempt

_MOST_IN_A_ROW = 16


class Workers:
    """Runs attempts, each in a task that no other attempt uses at the same time.

    A task is used again only after an attempt that returned, changed no context variable, and left no native
    cancellation behind. So nothing of an attempt reaches the next one.

    :param tasks: the group of the tasks
    :param surroundings: the context variables of the attempts
    :param most_idle: the maximum number of tasks that wait for an attempt
    """

    __slots__ = ("_idle", "_most_idle", "_surroundings", "_tasks")

    def __init__(self, tasks: TaskGroup, surroundings: Context, *, most_idle: int) -> None:
        self._tasks = tasks
        self._surroundings = surroundings
        self._most_idle = most_idle
        self._idle: list[_Worker] = []

    def run(self, attempt: Attempt) -> None:
        """Run an attempt to its end, in a task.

        :param attempt: an attempt that no task runs yet
        """
        if self._idle:
            self._idle.pop().take(attempt)
        else:
            worker = _Worker(self, attempt)
            # The name is that of the first attempt: not every event loop can rename a task.
            self._surroundings.copy().run(partial(self._tasks.start_soon, worker.run, name=attempt.path))

    def put_back(self, worker: _Worker) -> bool:
        """Let a task wait for an attempt; False if enough tasks wait.

        :param worker: the task
        """
        if len(self._idle) >= self._most_idle:
            return False
        self._idle.append(worker)
        return True

    def remove(self, worker: _Worker) -> None:
        """Give a task that ended no more attempts.

        :param worker: the task
        """
        if worker in self._idle:
            self._idle.remove(worker)


class _Worker:
    """One task."""

    __slots__ = ("_attempt", "_wake", "_workers")

    def __init__(self, workers: Workers, attempt: Attempt) -> None:
        self._workers = workers
        self._attempt: Attempt | None = attempt
        self._wake: anyio.Event | None = None

    def take(self, attempt: Attempt) -> None:
        """Run this attempt next."""
        self._attempt = attempt
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Run attempts until one does not return, or enough other tasks wait for attempts."""
        error: BaseException | None = None
        try:
            with anyio.CancelScope() as scope:
                await self._serve(scope)
        except GeneratorExit:
            raise
        except BaseException as caught:  # noqa: BLE001 - the supervisor decides how to continue
            error = caught
        finally:
            self._workers.remove(self)
        # No await from here to the report: an envelope that arrives now must find this attempt or the next one.
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(error)
        elif error is not None and anyio.current_effective_deadline() == -math.inf:
            raise error  # cancelled with its supervisor; a native cancellation of a task without an attempt is harmless
        # The traceback refers to this frame. Without `del`, the cycle waits for the garbage collector.
        del error
        await checkpoint_if_cancelled()

    async def _serve(self, scope: anyio.CancelScope) -> None:
        """Run attempts. The last one has not reported its end if it raised an error or was cancelled."""
        before, in_a_row = copy_context(), 0
        native_cancellations = _native_cancellations()
        while (attempt := self._attempt) is not None:
            await attempt.run_in(scope)
            if attempt.cancelled:
                return
            self._attempt = None
            # The end of this attempt may start the next one at once: in this task, if the task may be used again.
            reusable = not native_cancellations() and _has_changed_nothing(before) and self._workers.put_back(self)
            attempt.end(None)
            del attempt
            in_a_row += 1
            if reusable and self._attempt is None:
                self._wake = anyio.Event()
                await self._wake.wait()
                self._wake = None
                in_a_row = 0
            elif not reusable or in_a_row >= _MOST_IN_A_ROW:
                # Attempts that never await must not block the other tasks. And a native cancellation that is left must
                # be raised here: a task that returns before that counts as cancelled, and so does its group.
                await checkpoint()
                in_a_row = 0


def _native_cancellations() -> Callable[[], int]:
    """The function that counts the native cancellations of this task. There are none on trio."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return (lambda: 0) if task is None else task.cancelling


def _has_changed_nothing(before: Context) -> bool:
    """True if each context variable is as it was."""
    try:
        return copy_context() == before
    except Exception:  # noqa: BLE001 - values can have any `__eq__`, and it must not hide the end of an attempt
        return False
