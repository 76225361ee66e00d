"""Handles the signals that request a stop or a reload, from the start of the process.

This module imports nothing that takes time, because it runs before all other imports. Without a handler such a signal
ends a process in the middle of its work. Process 1 of a container ignores the signal without a handler.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_held: list[signal.Signals] = []
_original_handlers: dict[signal.Signals, Any] = {}
# What a shell reports for a process that a signal has ended.
_EXIT_BY_SIGNAL = 128


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


# Asked before anything can have closed the terminal.
_HAD_TERMINAL = _has_terminal()


def terminal_closed() -> bool:
    """True if the terminal of this process was closed, which is the other reason for a SIGHUP."""
    return _HAD_TERMINAL and not _has_terminal()


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT and SIGHUP; without SIGHUP if the process ignores it since its start, as with `nohup`."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return tuple(number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


def hold() -> None:
    """From now on hold these signals: the process continues, and `held` returns the signals."""
    for number in stop_signals():
        _original_handlers.setdefault(number, signal.getsignal(number))
    _handle(lambda number, _: _held.append(signal.Signals(number)))


def held() -> Sequence[signal.Signals]:
    """The signals that were held so far."""
    return tuple(_held)


def leave_at_once(exit_code: int) -> None:
    """From now on such a signal ends the process at once. Use this while there is nothing to stop in order.

    A signal that was held ends the process now. A SIGHUP that asks for a reload is held.
    """
    early = tuple(_held)
    _held.clear()

    def leave(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not terminal_closed():
            _held.append(signal.SIGHUP)
        else:
            os._exit(exit_code)

    _handle(leave)
    for number in early:
        leave(number, None)


def release() -> None:
    """From now on such a signal ends the running command, which may clean up. A held signal ends the command now.

    :raises SystemExit: SIGTERM or SIGHUP was held.
    :raises KeyboardInterrupt: SIGINT was held.
    """
    before = _original_handlers.get(signal.SIGINT, signal.getsignal(signal.SIGINT))
    _handle(_end)
    signal.signal(signal.SIGINT, before)
    for number in _held:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _end(number, None)


@contextmanager
def cancelling(cancel: Callable[[], object]) -> Iterator[None]:
    """Within the block, let the first signal that ends a command call `cancel` instead; a second one ends it at once.

    An exception from a signal handler can interrupt a coroutine where it calls an `__aexit__` whose result it has not
    awaited yet. So a command on an event loop is ended by a cancellation, as asyncio does it for SIGINT.

    :param cancel: lets the block end soon.
    :raises SystemExit: there was such a signal, and the block has ended.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()
        cancel()

    def restore() -> None:
        for number in handled:
            if signal.getsignal(number) is note:
                signal.signal(number, _end)

    handled = [number for number in stop_signals() if signal.getsignal(number) is _end]
    for number in handled:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
        if received:
            _end(received[0], None)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_EXIT_BY_SIGNAL + number)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in stop_signals():
        signal.signal(number, handler)
