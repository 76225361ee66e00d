"""A service as a process: signals, the exit code, and a last resort."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import structlog

from bcs import __version__
from bcs.config.settings import Environment, Settings
from bcs.config.unknown import unknown_secret_files, unknown_variables
from bcs.domain.pipelines import PipelineDefinitions
from bcs.errors import DatabaseUnusable, DefinitionsRefused, RedisUnusable
from bcs.http.access import CALLERS_UNKNOWN
from bcs.runtime.last_resort import exit_after
from bcs.runtime.signals import held, hold, stop_signals, terminal_closed
from bcs.runtime.tree import Service
from bcs.supervision import RestartIntensityExceeded

log = structlog.stdlib.get_logger("bcs")

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_STOPPED_AT_ONCE = 130

# A stop that has used its budget may still cancel actors and close connections for this time.
_LAST_RESORT_EXTRA_SECONDS = 10.0
_GIVING_UP_SECONDS = 1.8
# Each event makes about a hundred objects that live until its commit. With Python's own thresholds (700, 10, 10) the
# collector scans them again and again. With these thresholds, a scan takes about a millisecond. See gc.set_threshold.
_GARBAGE_COLLECTION_THRESHOLDS = 10_000, 20, 20


def tune_garbage_collection() -> None:
    """Make the pauses of Python's garbage collector shorter. Call this once everything has started."""
    # The objects that exist now live until the end, and each scan of them would block the event loop for about 50 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_COLLECTION_THRESHOLDS)


def warn_of_unknown_callers(settings: Settings) -> None:
    """Warn of a service in production that does not ask who its callers are."""
    if settings.environment is Environment.PRODUCTION and not settings.knows_callers:
        log.warning("callers_unknown", problem=CALLERS_UNKNOWN)


async def run_until_signalled(
    settings: Settings,
    definitions: PipelineDefinitions,
    *,
    reloads_on_hangup: bool,
    alongside: Callable[[Service, Callable[[], bool]], Coroutine[Any, Any, None]] | None = None,
) -> int:
    """Run a service until SIGTERM or SIGINT, or until its terminal is closed; a second signal stops it at once.

    A signal that was held before the call counts. When this returns, signals are held again, because the process is
    about to end.

    :param reloads_on_hangup: SIGHUP lets the service read its pipeline file again, unless the terminal was closed; else
        SIGHUP stops the service.
    :param alongside: runs once everything has started, and is cancelled when a stop is requested. Its arguments are the
        service, and a function that requests a stop as a signal does; that function returns False if a stop was
        requested before.
    :returns: the exit code: 0 after a stop in order, 1 if the tree gave up or the time to stop was not enough, 130
        after a second signal.
    :raises InvalidSettings: a file of callers or certificates can't be used.
    :raises AddressUnavailable: the HTTP address is not available.
    :raises RedisUnusable: the server answers, but BCS does not support it.
    :raises DatabaseUnusable: the database answers, but can't store the archive.
    """
    for unknown in unknown_variables(os.environ):
        log.warning("unknown_variable", variable=unknown.name, did_you_mean=unknown.near, problem=str(unknown))
    for unknown in unknown_secret_files(settings):
        log.warning("unknown_secret_file", file=unknown.name, did_you_mean=unknown.near, problem=str(unknown))
    warn_of_unknown_callers(settings)
    refusal: DatabaseUnusable | RedisUnusable | None = None
    stop = anyio.Event()
    exit_code = EXIT_STOPPED_AT_ONCE
    last_resorts: list[threading.Timer] = []

    def end_by_force_after(seconds: float, exit_code: int) -> None:
        last_resorts.append(exit_after(seconds, exit_code, event="forced_exit"))

    service = Service(settings, definitions, gave_up=lambda: end_by_force_after(_GIVING_UP_SECONDS, EXIT_FAILED))
    async with anyio.create_task_group() as group:

        def on_signal(received: signal.Signals) -> None:
            if received == signal.SIGHUP and reloads_on_hangup and not terminal_closed():
                if not stop.is_set():
                    group.start_soon(reload)
                return
            if stop.is_set():
                log.warning("stopping_immediately", signal=received.name)
                end_by_force_after(_LAST_RESORT_EXTRA_SECONDS, EXIT_STOPPED_AT_ONCE)
                group.cancel_scope.cancel()
                return
            request_stop(signal=received.name)

        def request_stop(**details: str) -> bool:
            if stop.is_set():
                return False
            log.info("stopping", **details, budget_seconds=settings.shutdown_seconds)
            end_by_force_after(settings.shutdown_seconds + _LAST_RESORT_EXTRA_SECONDS, EXIT_FAILED)
            stop.set()
            return True

        async def reload() -> None:
            with suppress(DefinitionsRefused):  # it is in the log, and the service goes on
                await service.definitions.reload(signal.SIGHUP.name)

        async def watch_signals(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                with anyio.open_signal_receiver(*stop_signals()) as signals:
                    task_status.started()
                    for early in held():
                        on_signal(early)
                    async for received in signals:
                        on_signal(received)
            finally:
                hold()

        def on_started() -> None:
            tune_garbage_collection()
            host, port = service.address
            log.info("started", version=__version__, host=host, port=port)
            if alongside:
                group.start_soon(run_alongside, alongside)

        async def run_alongside(companion: Callable[[Service, Callable[[], bool]], Coroutine[Any, Any, None]]) -> None:
            async with anyio.create_task_group() as companions:
                companions.start_soon(companion, service, request_stop)
                await stop.wait()
                companions.cancel_scope.cancel()

        await group.start(watch_signals)
        try:
            in_time = await service.run(stop, on_started)
            exit_code = EXIT_STOPPED if in_time else EXIT_FAILED
        except RestartIntensityExceeded as error:
            log.critical("supervision_failed", error=str(error))
            exit_code = EXIT_FAILED
        except (DatabaseUnusable, RedisUnusable) as error:
            refusal = error  # raised below; raised here, the task group would wrap it
        group.cancel_scope.cancel()
    for timer in last_resorts:
        timer.cancel()
    if refusal:
        raise refusal
    log.info("stopped", exit_code=exit_code)
    return exit_code
