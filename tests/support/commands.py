"""``bcs`` with some arguments, run to its end: into pipes, or at a terminal of a certain width."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sysconfig
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread

from tests.support.service import RunningService

_TIMEOUT_SECONDS = 60
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


async def bcs(*arguments: str, **environment: object) -> Ran:
    """Run it with its outputs as pipes.

    :param environment: `BCS_*` and other variables; of this process's own environment it gets no `BCS_*`.
    """

    def run() -> Ran:
        done = subprocess.run(
            _command(arguments),
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return await anyio.to_thread.run_sync(run)


async def bcs_at_terminal(columns: int, *arguments: str, **environment: object) -> Ran:
    """The same with a terminal for its outputs."""

    def run() -> Ran:
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        with subprocess.Popen(
            _command(arguments),
            env={**_environment(environment), "TERM": "xterm-256color"},
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=its,
        ) as process:
            os.close(its)
            output = b"".join(iter(lambda: _read(ours), b""))
            os.close(ours)
            exit_code = process.wait(_TIMEOUT_SECONDS)
        return Ran(exit_code, output.decode().replace("\r\n", "\n"), "")

    return await anyio.to_thread.run_sync(run)


def settings_of(service: RunningService) -> dict[str, object]:
    """The environment in which a command finds what a service has."""
    settings = service.service.settings
    names = ("redis_url", "redis_key_prefix", "kafka_bootstrap_servers", "kafka_consumer_group_id")
    return {f"BCS_{name.upper()}": getattr(settings, name) for name in names}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [str(Path(sysconfig.get_path("scripts")) / "bcs"), *arguments]


def _environment(given: Mapping[str, object]) -> dict[str, str]:
    ours = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BCS_") and name not in ours}
    return {**inherited, "PYTHONWARNINGS": "error", **{name: str(value) for name, value in given.items()}}
