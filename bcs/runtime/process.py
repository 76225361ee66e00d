"""A service as a process: signals, the exit code, and a last resort."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc
import structlog

from bcs import __version__
from bcs.config.settings import Settings, unknown_variables
from bcs.domain.pipelines import PipelineDefinitions
from bcs.errors import DatabaseUnusable, RedisUnusable
from bcs.runtime.last_resort import exit_after
from bcs.runtime.signals import held, hold, stop_signals
from bcs.runtime.tree import Service
from bcs.supervision import RestartIntensityExceeded

log = structlog.stdlib.get_logger("bcs")

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_STOPPED_AT_ONCE = 130

# Beyond its budget a stop may still cancel what is left and close connections; then it must be over.
_LAST_RESORT_EXTRA_SECONDS = 10.0
_GIVING_UP_SECONDS = 1.8
# Each event makes some hundred objects that live until its commit. Python's own thresholds (700, 10, 10) look at them
# again and again; to look at so many takes about a millisecond. See gc.set_threshold for what the three mean.
_GARBAGE_COLLECTION_THRESHOLDS = 10_000, 20, 20


def tune_garbage_collection() -> None:
    """Let the garbage collector of Python hold up the event loop less. For a process that has started everything."""
    # What is there now stays: to look through it for garbage holds up everything for some 50 ms each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_COLLECTION_THRESHOLDS)


async def run_until_signalled(
    settings: Settings,
    definitions: PipelineDefinitions,
    alongside: Callable[[Service, Callable[[], bool]], Coroutine[Any, Any, None]] | None = None,
) -> int:
    """Run a service until SIGTERM, SIGINT or SIGHUP; a second signal stops it at once.

    One that came before and was held counts. Afterwards they are held again, since the end is near.

    :param alongside: runs once everything has started, and is cancelled when a stop is asked for. Gets the service, and
        a function that asks for a stop as a signal does, and says whether nobody has asked before.
    :returns: the exit code: 0 after a stop in order, 1 when the tree gave up or the time to stop was not enough, 130
        when a second signal came.
    :raises AddressUnavailable: the HTTP address can't be had.
    :raises RedisUnusable: the server answers, and is no Redis that BCS supports.
    :raises DatabaseUnusable: the database answers, and can't keep the permanent record.
    """
    for unknown in unknown_variables(os.environ):
        log.warning("unknown_variable", variable=unknown.name, did_you_mean=unknown.near, problem=str(unknown))
    refusal: DatabaseUnusable | RedisUnusable | None = None
    stop = anyio.Event()
    exit_code = EXIT_STOPPED_AT_ONCE
    last_resorts: list[threading.Timer] = []

    def end_by_force_after(seconds: float, exit_code: int) -> None:
        last_resorts.append(exit_after(seconds, exit_code, event="forced_exit"))

    service = Service(settings, definitions, gave_up=lambda: end_by_force_after(_GIVING_UP_SECONDS, EXIT_FAILED))
    async with anyio.create_task_group() as group:

        def hear(received: signal.Signals) -> None:
            if stop.is_set():
                log.warning("stopping_immediately", signal=received.name)
                end_by_force_after(_LAST_RESORT_EXTRA_SECONDS, EXIT_STOPPED_AT_ONCE)
                group.cancel_scope.cancel()
                return
            ask_to_stop(signal=received.name)

        def ask_to_stop(**why: str) -> bool:
            if stop.is_set():
                return False
            log.info("stopping", **why, budget_seconds=settings.shutdown_seconds)
            end_by_force_after(settings.shutdown_seconds + _LAST_RESORT_EXTRA_SECONDS, EXIT_FAILED)
            stop.set()
            return True

        async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                with anyio.open_signal_receiver(*stop_signals()) as signals:
                    task_status.started()
                    for early in held():
                        hear(early)
                    async for received in signals:
                        hear(received)
            finally:
                hold()

        def announce() -> None:
            tune_garbage_collection()
            host, port = service.address
            log.info("started", version=__version__, host=host, port=port)
            if alongside:
                group.start_soon(accompany, alongside)

        async def accompany(companion: Callable[[Service, Callable[[], bool]], Coroutine[Any, Any, None]]) -> None:
            async with anyio.create_task_group() as company:
                company.start_soon(companion, service, ask_to_stop)
                await stop.wait()
                company.cancel_scope.cancel()

        await group.start(listen)
        try:
            in_time = await service.run(stop, announce)
            exit_code = EXIT_STOPPED if in_time else EXIT_FAILED
        except RestartIntensityExceeded as error:
            log.critical("supervision_failed", error=str(error))
            exit_code = EXIT_FAILED
        except (DatabaseUnusable, RedisUnusable) as error:
            refusal = error  # raised below: from here it would come in a group
        group.cancel_scope.cancel()
    for timer in last_resorts:
        timer.cancel()
    if refusal:
        raise refusal
    log.info("stopped", exit_code=exit_code)
    return exit_code
