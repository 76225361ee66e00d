"""Commands as a person types them: into bash, at a terminal."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.commands import command_environment, run_at_terminal

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = "━"
_POLL_SECONDS = 0.1


class TypedShell:
    """A bash in which `bcs` runs the code of this folder.

    :param directory: where the person is.
    :param variables: what is exported there.
    :param columns: the width of the terminal.
    :param limit_seconds: how long a command is repeated, because events take time.
    """

    def __init__(self, directory: Path, variables: Mapping[str, object], columns: int, limit_seconds: float) -> None:
        self._directory, self._variables, self._columns = directory, variables, columns
        self._limit_seconds = limit_seconds

    def run(self, command: str, shows: Sequence[str] = (), exit_code: int | None = None) -> str:
        """Type a command, and again until its output is as expected.

        :param shows: regular expressions, all found in what it prints.
        :param exit_code: None: any.
        :returns: what the person sees: without colours, and with the last state of each line.
        :raises TimeoutError: it never printed that.
        :raises AssertionError: it ended with another exit code.
        """
        bcs = f'bcs() {{ {shlex.quote(sys.executable)} -m bcs "$@"; }}; '
        environment = {**command_environment(self._variables), "TERM": "xterm-256color"}

        def start(terminal: Path) -> subprocess.Popen[bytes]:
            with terminal.open("wb", buffering=0) as output:
                return subprocess.Popen(
                    ["/bin/bash", "-o", "pipefail", "-c", bcs + command],
                    cwd=self._directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )

        deadline = time.monotonic() + self._limit_seconds
        while True:
            done = run_at_terminal(self._columns, start)
            output = _as_seen(done.output)
            if all(re.search(pattern, output) for pattern in shows):
                if exit_code not in (None, done.exit_code):
                    raise AssertionError(f"{command}: exit code {done.exit_code}\n{output}")
                return output
            if time.monotonic() > deadline:
                raise TimeoutError(f"{command}: exit code {done.exit_code}\n{output}")
            # A reader of the page would try again, too.
            time.sleep(_POLL_SECONDS)


def _as_seen(output: str) -> str:
    lines = [line.rpartition("\r")[2].rstrip() for line in ESCAPES.sub("", output).splitlines()]
    last_bar = max((number for number, line in enumerate(lines) if _BAR in line), default=None)
    return "\n".join(line for number, line in enumerate(lines) if _BAR not in line or number == last_bar)
