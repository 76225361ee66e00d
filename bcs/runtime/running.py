"""Runs a command's coroutine to its end, and no longer: no thread that hangs holds up its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import ParamSpec, TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, which neither the event loop nor the interpreter waits for at the end.

    asyncio looks names up in threads, and a name service that never answers would keep a process for minutes.
    """

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        """See `Executor.submit`."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments, **options)
            except Exception as error:  # noqa: BLE001 (whoever waits for the result gets it)
                future.set_exception(error)
            else:
                future.set_result(result)

        Thread(target=work, name="lookup", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for nobody."""


def run(main: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """Run a coroutine function on an event loop of its own."""
    return anyio.run(main, *arguments, backend_options={"loop_factory": _new_loop})


def in_time(call: Callable[[], T], seconds: float) -> T:
    """Call something that blocks, and leave it to itself when that takes too long.

    :raises TimeoutError: it did.
    """
    return DaemonThreads().submit(call).result(seconds)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(DaemonThreads())
    return loop
