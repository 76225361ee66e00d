"""An operator at a command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

_SECONDS = 60


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    exit_code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The document that it printed."""
        return json.loads(self.output)


class Operator:
    """Runs ``bcs`` with certain settings.

    :param settings: as `BCS_*` variables.
    """

    def __init__(self, **settings: object) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BCS_")}
        chosen = {f"BCS_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = {**inherited, "PYTHONWARNINGS": "error", **chosen}

    async def runs(self, *arguments: str, given: str = "") -> Said:
        """Run a command to its end."""

        def run() -> Said:
            done = subprocess.run(
                _command(arguments),
                input=given,
                capture_output=True,
                text=True,
                env=self._environment,
                timeout=_SECONDS,
                check=False,
            )
            return Said(done.returncode, done.stdout, done.stderr)

        return await anyio.to_thread.run_sync(run)

    async def asks(self, *arguments: str) -> Any:
        """Run a command that has to succeed, and return its JSON."""
        said = await self.runs(*arguments, "--json")
        assert said.exit_code == 0, said
        return said.json

    @contextmanager
    def running(self, *arguments: str, ended_by: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """A command that is under way, and is ended at the end of the block; by kill -9, unless by another signal."""
        nothing = subprocess.DEVNULL
        with subprocess.Popen(_command(arguments), stdout=nothing, stderr=nothing, env=self._environment) as process:
            try:
                yield
                assert process.poll() is None, "it was still at work"
                process.send_signal(ended_by)
                process.wait(_SECONDS)
            finally:
                process.kill()


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "bcs", *arguments]
