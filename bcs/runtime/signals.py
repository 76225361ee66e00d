"""Signals that ask the process to stop, heard from its first moment on.

This imports nothing that takes time, since it is needed before all else is imported. Without a handler a process dies
of such a signal half way into something; as process 1 of a container it does not even notice the signal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_held: list[signal.Signals] = []
_before: dict[signal.Signals, Any] = {}
# What a shell reports for a process that a signal has ended.
_EXIT_BY_SIGNAL = 128


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT, and SIGHUP unless whoever started the process ignores it, as `nohup` does."""
    heard = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return tuple(number for number in heard if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


def hold() -> None:
    """From now on note these signals, and go on: what can be stopped in order asks for them with `held`."""
    for number in stop_signals():
        _before.setdefault(number, signal.getsignal(number))
    _handle(lambda number, _: _held.append(signal.Signals(number)))


def held() -> Sequence[signal.Signals]:
    """The signals that came while they were held."""
    return tuple(_held)


def leave_at_once(exit_code: int) -> None:
    """From now on end the process when such a signal comes, as long as there is nothing to be stopped in order.

    One that was held ends it now.
    """
    _handle(lambda _number, _frame: os._exit(exit_code))
    if _held:
        os._exit(exit_code)


def release() -> None:
    """From now on such a signal ends the command that runs, which may clean up. One that was held ends it now.

    :raises SystemExit: SIGTERM or SIGHUP was held.
    :raises KeyboardInterrupt: SIGINT was held.
    """
    before = _before.get(signal.SIGINT, signal.getsignal(signal.SIGINT))
    _handle(_end)
    signal.signal(signal.SIGINT, before)
    for number in _held:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _end(number, None)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_EXIT_BY_SIGNAL + number)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in stop_signals():
        signal.signal(number, handler)
