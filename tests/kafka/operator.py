"""An operator at a command line."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.commands import Ran, bcs, command_environment
from tests.support.forked import ForkedProcess

_SECONDS = 60


class Operator:
    """Runs ``bcs`` with certain settings.

    :param settings: as `BCS_*` variables.
    """

    def __init__(self, **settings: object) -> None:
        self._environment = {f"BCS_{name.upper()}": str(value) for name, value in settings.items()}

    async def runs(self, *arguments: str, given: str = "") -> Ran:
        """Run a command to its end."""
        return await bcs(*arguments, given=given, **self._environment)

    async def asks(self, *arguments: str) -> Any:
        """Run a command that has to succeed, and return its JSON."""
        ran = await self.runs(*arguments, "--json")
        assert ran.exit_code == 0, ran
        return ran.json

    @contextmanager
    def running(self, *arguments: str, ended_by: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """A command that is under way, and is ended at the end of the block; by kill -9, unless by another signal."""
        nowhere = Path(os.devnull)
        process = ForkedProcess(
            arguments, command_environment(self._environment), stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
        try:
            yield
            assert process.poll() is None, "it was still at work"
            process.send_signal(ended_by)
            process.wait(_SECONDS)
        finally:
            process.kill()
