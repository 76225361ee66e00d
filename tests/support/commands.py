"""``bcs`` with some arguments, run to its end: into files, or at a terminal of a certain width."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sysconfig
import tempfile
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import SecretStr

from tests.support.forked import ForkedProcess
from tests.support.service import RunningService

_TIMEOUT_SECONDS = 60
_POLL_SECONDS = 0.05
_INSTALLED = str(Path(sysconfig.get_path("scripts")) / "bcs")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    exit_code: int
    output: str
    error: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        assert self.exit_code in (0, 1), self
        return json.loads(self.output)

    @property
    def uncoloured(self) -> str:
        """The output without colours."""
        return _ESCAPES.sub("", self.output)


async def bcs(*arguments: str, given: object = "", **environment: object) -> Ran:
    """Run it in a process that is forked, with files for its outputs.

    :param given: the text that it reads from its input; an object to mypy, as the variables beside it are.
    :param environment: `BCS_*` and other variables; of this process's own environment it gets no `BCS_*`.
    """

    def run() -> Ran:
        with tempfile.TemporaryDirectory() as directory:
            stdin, stdout, stderr = (Path(directory) / name for name in ("stdin", "stdout", "stderr"))
            for file in (stdout, stderr):
                file.touch()
            stdin.write_text(str(given))
            process = ForkedProcess(
                arguments, command_environment(environment), stdin=stdin, stdout=stdout, stderr=stderr
            )
            try:
                exit_code = process.wait(_TIMEOUT_SECONDS)
            finally:
                process.kill()
            return _ran(exit_code, stdout.read_text(), stderr.read_text())

    return await anyio.to_thread.run_sync(run)


async def installed_bcs(*arguments: str, **environment: object) -> Ran:
    """Run the installed command itself, with pipes for its outputs."""

    def run() -> Ran:
        done = subprocess.run(
            [_INSTALLED, *arguments],
            env=command_environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        return _ran(done.returncode, done.stdout, done.stderr)

    return await anyio.to_thread.run_sync(run)


async def bcs_at_terminal(columns: int, *arguments: str, **environment: object) -> Ran:
    """The same as :func:`bcs` with a terminal for its outputs."""

    def start(terminal: Path) -> ForkedProcess:
        variables = _terminal_environment(environment)
        return ForkedProcess(arguments, variables, stdin=Path(os.devnull), stdout=terminal, stderr=terminal)

    return await anyio.to_thread.run_sync(run_at_terminal, columns, start)


async def installed_bcs_at_terminal(columns: int, *arguments: str, **environment: object) -> Ran:
    """The same as :func:`installed_bcs` with a terminal for its outputs."""

    def start(terminal: Path) -> subprocess.Popen[bytes]:
        with terminal.open("wb", buffering=0) as output:
            return subprocess.Popen(
                [_INSTALLED, *arguments],
                env=_terminal_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    return await anyio.to_thread.run_sync(run_at_terminal, columns, start)


def run_at_terminal(columns: int, start: Callable[[Path], ForkedProcess | subprocess.Popen[bytes]]) -> Ran:
    """Run what is started with the path of a terminal for its outputs, to its end."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = start(Path(os.ttyname(its)))
    try:
        # Once the process has the terminal, it is its last user: then its end ends the output.
        output = b""
        while process.poll() is None and not output:
            if select.select([ours], [], [], _POLL_SECONDS)[0]:
                output = _read(ours)
        os.close(its)
        output += b"".join(iter(lambda: _read(ours), b""))
        exit_code = process.wait(_TIMEOUT_SECONDS)
    finally:
        process.kill()
        os.close(ours)
    return Ran(exit_code, output.decode().replace("\r\n", "\n"), "")


def settings_of(service: RunningService) -> dict[str, object]:
    """The environment in which a command finds what a service has."""
    settings = service.service.settings
    names = ("redis_url", "redis_key_prefix", "kafka_bootstrap_servers", "kafka_consumer_group_id")
    # The service took a port that was free.
    return {
        "BCS_HTTP_HOST": settings.http_host,
        "BCS_HTTP_PORT": service.service.address[1],
        **{f"BCS_{name.upper()}": _plain(getattr(settings, name)) for name in names},
    }


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def _ran(exit_code: int, output: str, error: str) -> Ran:
    assert "Traceback" not in error, error
    return Ran(exit_code, output, error)


def _terminal_environment(given: Mapping[str, object]) -> dict[str, str]:
    return {**command_environment(given), "TERM": "xterm-256color"}


def command_environment(given: Mapping[str, object]) -> dict[str, str]:
    """All variables of a command's process: the given ones, and those of ours that do not change what it does."""
    ours = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BCS_") and name not in ours}
    return {**inherited, "PYTHONWARNINGS": "error", **{name: str(value) for name, value in given.items()}}
