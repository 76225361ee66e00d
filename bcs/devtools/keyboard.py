"""Single keys that somebody presses at the terminal of a process."""

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
    """Whether standard input is a terminal, and this process the one that its keys go to."""
    try:
        return sys.stdin is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


@contextmanager
def single_keys() -> Iterator[None]:
    """A block in which the terminal hands out each key at once, and shows none. Ctrl-C stays a signal.

    Nothing changes where nobody is at a keyboard.
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


async def pressed(key: str) -> None:
    """Wait until a key is pressed; for ever where nobody is at a keyboard."""
    if not at_keyboard():
        await anyio.sleep_forever()
    descriptor = sys.stdin.fileno()
    while True:
        await anyio.wait_readable(descriptor)
        if not at_keyboard():
            # To read in the background would stop the process.
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
