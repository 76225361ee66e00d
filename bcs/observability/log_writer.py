"""Writes the lines of the log in a separate thread, so that a stuck reader of the log blocks only this thread."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate


class LogWriter:
    """Accepts lines without waiting, and writes them in order; lines that do not fit are dropped and counted.

    The file descriptor is written directly: a thread that hangs in a write to `sys.stderr` would hold the lock of
    `sys.stderr`, for which Python waits at the end of the process.

    :param descriptor: the file descriptor for the lines.
    :param limit_bytes: how many bytes may wait; as many more may be in a write that hangs.
    :param dropped: called with the number of dropped lines.
    :param notice: makes the line with the number of lines that were dropped before it.
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
        self._missing = 0  # lines that were dropped after the waiting lines
        self._writing = False
        self._unreported = 0  # dropped lines that no notice has reported yet
        threading.Thread(target=self._run, name="log writer", daemon=True).start()

    def put(self, line: str) -> None:
        """Pass a line to the thread, or drop it. Returns at once."""
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
        """Wait until all lines are written, but no longer than the timeout."""
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
            self._write_notice()
            # In one write: between two writes other threads run, under load for milliseconds.
            lost = len(lines) - self._write(lines)
            if lost:
                self._dropped(lost)
            self._unreported += lost + missing
            if not lost:
                self._write_notice()

    def _write_notice(self) -> None:
        if self._unreported and self._write([f"{self._notice(self._unreported)}\n".encode()]):
            self._unreported = 0

    def _write(self, lines: Sequence[bytes]) -> int:
        """Write lines.

        :returns: how many lines were written; fewer than all where writing fails, as on a full disk.
        """
        data = memoryview(b"".join(lines))
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._descriptor, data[done:])
                except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError):
            ends = accumulate(map(len, lines))
            return sum(end <= done for end in ends)
        return len(lines)
