"""Ends the process in every case, because nothing can force a hanging coroutine or thread to end."""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger("bcs")


def exit_after(seconds: float, exit_code: int, *, event: str | None = None) -> threading.Timer:
    """End the process after a time, unless it has ended before.

    :param event: the log event that is written first; None for no log line.
    :returns: the timer, which can be cancelled.
    """
    timer = threading.Timer(seconds, _exit, (exit_code, event))
    timer.daemon = True
    timer.start()
    return timer


def _exit(exit_code: int, event: str | None) -> None:
    if event:
        log.critical(event)
    logging.shutdown()  # writes the log lines that wait, within a time limit
    os._exit(exit_code)
