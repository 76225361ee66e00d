"""The processes of this machine, and processes at their own terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def servers_in(directory: Path) -> list[str]:
    """The ids of processes that run in a directory or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(process.name)
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def children_of(process_id: int) -> set[int]:
    """The process ids of the children of a process."""
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


@contextmanager
def at_a_terminal(*arguments: str, **environment: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``bcs`` at a terminal of its own, and the other side of that terminal, which does not block."""
    with command_at_a_terminal([sys.executable, "-m", "bcs", *arguments], environment) as found:
        yield found


@contextmanager
def command_at_a_terminal(
    command: Sequence[str], environment: Mapping[str, object], directory: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command at a terminal of its own, and the other side of that terminal, which does not block.

    :param environment: variables beside ours.
    :param directory: where the command runs; None: where we do.
    """
    terminal, inside = pty.openpty()
    os.set_blocking(terminal, False)
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    try:
        yield process, terminal
    finally:
        process.kill()
        process.wait()
