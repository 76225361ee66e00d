"""Writes the lines of the log in a thread of its own: a reader that stands still holds up nobody but that thread."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate


class LogWriter:
    """Takes lines without waiting, and writes them in their order; what does not fit is dropped and counted.

    The file descriptor is written directly. A thread that hangs in a write to `sys.stderr` would hold its lock, for
    which Python waits at the end of the process.

    :param descriptor: where the lines go.
    :param limit_bytes: so much may wait, and so much more may be in a write that hangs.
    :param dropped: is told how many lines were dropped.
    :param notice: makes the line that says how many were dropped before it.
    """

    def __init__(
        self, descriptor: int, *, limit_bytes: int, dropped: Callable[[int], None], notice: Callable[[int], str]
    ) -> None:
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._dropped = dropped
        self._notice = notice
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._missing = 0  # lines that would stand behind those which wait
        self._writing = False
        self._unsaid = 0  # dropped lines that no notice has told of yet
        threading.Thread(target=self._run, name="log writer", daemon=True).start()

    def put(self, line: str) -> None:
        """Have a line written, or drop it. Returns at once."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) <= self._limit_bytes:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._changed.notify_all()
                return
            self._missing += 1
        self._dropped(1)

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
                missing, self._missing = self._missing, 0
                self._writing = True
            self._say()
            # All at once: between two writes other threads have the interpreter, under load for milliseconds.
            lost = len(lines) - self._write(lines)
            if lost:
                self._dropped(lost)
            self._unsaid += lost + missing
            if not lost:
                self._say()

    def _say(self) -> None:
        if self._unsaid and self._write([f"{self._notice(self._unsaid)}\n".encode()]):
            self._unsaid = 0

    def _write(self, lines: Sequence[bytes]) -> int:
        """Write lines.

        :returns: how many were written; fewer than all when there is nowhere to write to, as on a full disk.
        """
        data = memoryview(b"".join(lines))
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._descriptor, data[done:])
                except BlockingIOError:  # whoever shares the descriptor has made it one that does not wait
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError):
            ends = accumulate(map(len, lines))
            return sum(end <= done for end in ends)
        return len(lines)
