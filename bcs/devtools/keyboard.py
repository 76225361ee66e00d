"""Single key presses at the terminal of a process."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio

_IN_BACKGROUND_SECONDS = 0.5


def at_keyboard() -> bool:
    """True if standard input is a terminal, and this process receives its keys."""
    try:
        return sys.stdin is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


@contextmanager
def single_keys() -> Iterator[None]:
    """A block in which the terminal delivers each key at once, and does not show it. Ctrl-C stays a signal.

    Without a keyboard this does nothing.
    """
    if not at_keyboard():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be closed
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


async def key_press(key: str) -> None:
    """Wait until a key is pressed; without a keyboard, wait for ever."""
    if not at_keyboard():
        await anyio.sleep_forever()
    descriptor = sys.stdin.fileno()
    while True:
        await anyio.wait_readable(descriptor)
        if not at_keyboard():
            # Reading in the background would stop the process.
            await anyio.sleep(_IN_BACKGROUND_SECONDS)
            continue
        try:
            keys = os.read(descriptor, 1024)
        except OSError:
            keys = b""
        if not keys:  # the terminal is closed
            await anyio.sleep_forever()
        if key.encode() in keys:
            return
