"""``bcs``, or another program on its modules, as a process that is forked from one which has imported everything.

Such a process has what a started one has: arguments, environment, outputs, signals, an exit code. Only the imports,
which are most of what a short command costs, are paid once. That the installed command starts is tested apart.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import bcs

_EXECUTABLE_MODULES = ("bcs.__main__", "bcs.storage.postgres.migrations.env")


def bcs_command() -> None:
    """What the command ``bcs`` does."""
    from bcs.cli.main import main

    main()


class ForkedProcess:
    """One process, with those methods of :class:`subprocess.Popen` that the tests use.

    It ends with the process that runs the tests, unless that is killed.

    :param environment: all variables that it gets.
    :param stdin: a file to read from.
    :param stdout: a file, or a terminal.
    :param stderr: the same.
    :param program: a function of a module, which takes the place of ``bcs``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: Path,
        stdout: Path,
        stderr: Path,
        program: Callable[[], None] = bcs_command,
    ) -> None:
        given = (list(arguments), dict(environment), stdin, stdout, stderr, program)
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        :raises subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("bcs", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def made_fifo(path: Path) -> TextIO:
    """Make a pipe with a name, for the input of a process that waits for a word; the end to write to."""
    os.mkfifo(path)
    # Opened for both, or the opening would wait for the process.
    return os.fdopen(os.open(path, os.O_RDWR), "w")


def _run(
    arguments: list[str],
    environment: dict[str, str],
    stdin: Path,
    stdout: Path,
    stderr: Path,
    program: Callable[[], None],
) -> None:
    """What the forked process does."""
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)
    for descriptor, (path, how) in enumerate(zip((stdin, stdout, stderr), flags, strict=True)):
        opened = os.open(path, how | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
    # As in a process that a person started: where the suite runs in the background, it ignores both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["bcs", *arguments]
    if environment.get("PYTHONWARNINGS") == "error":
        warnings.resetwarnings()
        warnings.simplefilter("error")
    try:
        program()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them


def _modules() -> list[str]:
    """All modules of the project that may be imported without running anything."""
    found = pkgutil.walk_packages(bcs.__path__, "bcs.")
    return [module.name for module in found if module.name not in _EXECUTABLE_MODULES]


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*_modules(), "tests.support.preloaded"])
