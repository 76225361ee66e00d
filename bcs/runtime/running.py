"""Runs the coroutine of a command. A thread that hangs does not delay the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import ParamSpec, TypeVar, TypeVarTuple

import anyio

from bcs.runtime.signals import cancelling

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in its own thread. Neither the event loop nor the interpreter waits for these threads at the end.

    asyncio resolves host names in threads, and a name service that never answers would delay the end for minutes.
    """

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        """See `Executor.submit`."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments, **options)
            except Exception as error:  # noqa: BLE001 (the caller gets the error from the future)
                future.set_exception(error)
            else:
                future.set_result(result)

        Thread(target=work, name="lookup", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: no thread is waited for."""


def run(main: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """Run a coroutine function on an event loop of its own. A signal that ends the command cancels it.

    :raises SystemExit: there was such a signal.
    """

    async def cancelled_by_signals() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task  # noqa: S101 (a coroutine runs in a task)
        # A handler runs between any two instructions, also while the loop waits.
        with cancelling(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await main(*arguments)

    return anyio.run(cancelled_by_signals, backend_options={"loop_factory": _new_loop})


def call_with_timeout(call: Callable[[], T], seconds: float) -> T:
    """Call a function that blocks. After the timeout the call is no longer waited for, but continues in its thread.

    :raises TimeoutError: the call took longer.
    """
    return DaemonThreads().submit(call).result(seconds)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(DaemonThreads())
    return loop
