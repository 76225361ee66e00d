"""Ends the process for certain: no coroutine and no thread can be made to end, and one that hangs would keep it."""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger("bcs")


def exit_after(seconds: float, exit_code: int, *, event: str | None = None) -> threading.Timer:
    """End the process when it has not ended by itself by then.

    :param event: logged in this case.
    :returns: what can be cancelled.
    """
    timer = threading.Timer(seconds, _exit, (exit_code, event))
    timer.daemon = True
    timer.start()
    return timer


def _exit(exit_code: int, event: str | None) -> None:
    if event:
        log.critical(event)
    logging.shutdown()  # writes what waits, within bounds
    os._exit(exit_code)
