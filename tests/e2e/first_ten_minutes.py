"""The first ten minutes of a new user, for docs/first-ten-minutes.md: `python -m tests.e2e.first_ten_minutes`.

All commands stand in the README, in `bcs --help`, or in what `bcs dev --demo` prints.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bcs.devtools.servers.embedded import HOST, free_port
from tests.e2e.processes import command_at_a_terminal
from tests.support.typed import ESCAPES, TypedShell

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "first-ten-minutes.md"
LIMIT_SECONDS = 600

_STEP_SECONDS = 60
_USUAL_PORT = 4002
_COLUMNS = 80
_POLL_SECONDS = 0.1
_CALLER = re.compile(r"\([\w.-]+@[\w.-]+\)")


@dataclass(frozen=True, slots=True)
class Step:
    """A command that the user types.

    :param title: what it is for.
    :param shows: regular expressions, all found in what it prints; until they are, the user types it again. What the
        last one has in a group stands for `LETTER` in later commands.
    :param note: what the reader should know of it.
    """

    title: str
    command: str
    shows: tuple[str, ...]
    exit_code: int = 0
    note: str = ""


STEPS = [
    Step(
        "Register a batch of your own.",
        "bcs events sample BatchEssaysRegistered --batch mine | bcs events send -",
        (r"BatchEssaysRegistered sent to huleedu\S+, key mine",),
    ),
    Step(
        "Send the events of its spellcheck.",
        "bcs events sample SpellcheckPhaseCompletedV1 --batch mine | bcs events send -",
        (r"key essay_1", r"key essay_2", r"key essay_3"),
    ),
    Step(
        "What does BCS know of the batch?",
        "bcs batches show mine",
        (r"3 essays known, 3 expected", r"spellcheck +complete"),
    ),
    Step(
        "Which phases are still to run? Spellcheck is pruned, and BCS announces that.",
        "bcs resolve mine ai_feedback",
        (r"spellcheck +pruned", r"ai_feedback +run"),
    ),
    Step("Why was it pruned?", "bcs batches history mine --limit 1", (r"pruned spellcheck",)),
    Step(
        "Which events decided that?",
        "bcs explain mine ai_feedback",
        (r"spellcheck", r"ai_feedback"),
    ),
    Step(
        "What did BCS publish?",
        "bcs events tail --skipped --no-follow --last 1",
        (r"phase skipped: spellcheck of batch\s+mine",),
    ),
    Step(
        "Ask for spellcheck again although it is complete: force it.",
        "bcs resolve mine ai_feedback --force spellcheck",
        (r"spellcheck +run", r"ai_feedback +run"),
    ),
    Step("The history keeps that it was forced.", "bcs batches history mine --limit 1", (r"force spellcheck",)),
    Step(
        "Send an event about a phase that BCS does not know.",
        "bcs events sample ELSBatchPhaseOutcomeV1 --batch mine --phase grammar > /tmp/e.json; "
        "bcs events send /tmp/e.json",
        (r"unknown_phase: phase_name 'grammar' is not a known phase",),
        exit_code=1,
    ),
    Step("Send it unchecked, as a real producer would.", "bcs events send --unchecked /tmp/e.json", (r"key mine",)),
    Step(
        "Find the dead letter.",
        "bcs dlq list --each",
        (r"unknown_phase, batch mine", r"(huleedu\S+\.DLQ/\d+/\d+)"),
    ),
    Step(
        "Show the dead letter.", "bcs dlq show LETTER", (r"phase_name 'grammar' is not a known phase", r"(?s)\"mine\"")
    ),
    Step(
        "Mend the cause: define the phase, and press r where `bcs dev` runs.",
        r"sed -i 's/^pipelines:/  - {name: grammar, requires: [spellcheck]}\n\n&/' config/pipelines.yaml",
        (),
        note="`git checkout config/pipelines.yaml` takes it back. `bcs dev` reads this file, unless "
        "`BCS_PIPELINE_CONFIG_PATH` names another one.",
    ),
    Step("Put the message back.", "bcs dlq replay --all", (r"1 of 1 dead letters? replayed",)),
    Step(
        "Now BCS has applied the event.",
        "bcs batches show mine --phase grammar",
        (r"grammar +complete",),
        note="After a restart it can take about ten seconds until Kafka gives the partitions back. "
        "Until then, type the command again.",
    ),
    Step("Does everything work?", "bcs doctor | grep -v ^ok", ()),
]
MENDED = "Mend the cause"


class Terminal:
    """The terminal in which `bcs dev` runs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = ""

    def wait_for(self, text: str) -> str:
        """Wait until it shows a text.

        :returns: everything that it showed.
        """
        deadline = time.monotonic() + _STEP_SECONDS
        while text not in self.shown:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} in {self.shown}")
            # The terminal does not tell when there is something to read, and this is no event loop.
            time.sleep(_POLL_SECONDS)
            with suppress(BlockingIOError):
                self.shown += ESCAPES.sub("", os.read(self._descriptor, 65536).decode()).replace("\r\n", "\n")
        return self.shown

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._descriptor, key.encode())


def play() -> str:
    """Play all steps.

    :returns: the document.
    :raises TimeoutError: a step did not show what it has to.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        python = _copy_of_the_clone(directory)
        settings = {"BCS_HTTP_PORT": _port(), "PYTHONPATH": directory}
        command = [python, "-m", "bcs", "dev", "--demo"]
        with command_at_a_terminal(command, settings, directory) as (process, descriptor):
            terminal = Terminal(descriptor)
            terminal.wait_for("  . .venv/bin/activate\n  export ")
            story = terminal.wait_for("Ctrl-C stops everything.")
            variables = dict(re.findall(r"^  export (BCS_\w+)=(\S+)$", story, re.MULTILINE))
            sections = [_section("The story", begun, f"$ bcs dev --demo\n{story.strip()}")]
            sections += _steps(begun, terminal, directory, {**variables, "PYTHONPATH": str(directory)})
            terminal.press("\x03")
            process.wait(_STEP_SECONDS)
    return _document(sections, time.monotonic() - begun)


def _copy_of_the_clone(directory: Path) -> str:
    """Copy what the story runs and changes, and let `.venv` lead to the packages that are installed.

    :returns: the Python of the copy.
    """
    for name in ("bcs", "config"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / ".venv").symlink_to(sys.prefix)
    return str(directory / ".venv" / "bin" / "python")


def _port() -> int:
    """The usual port, or a free one where the usual port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, _USUAL_PORT))
        except OSError:
            return free_port()
    return _USUAL_PORT


def _steps(begun: float, terminal: Terminal, directory: Path, variables: dict[str, str]) -> list[str]:
    shell = TypedShell(directory, variables, _COLUMNS, _STEP_SECONDS)
    sections, letter = [], ""
    for step in STEPS:
        command = step.command.replace("LETTER", letter)
        output = shell.run(command, step.shows, step.exit_code if step.shows else None)
        if step.shows and (found := re.search(step.shows[-1], output)) and found.groups():
            letter = found.group(1)
        if step.title.startswith(MENDED):
            terminal.press("r")
            terminal.wait_for("BCS is running again")
        sections.append(_section(step.title, begun, f"$ {command}\n{output.strip()}".strip(), step.note))
    return sections


def _section(title: str, begun: float, transcript: str, note: str = "") -> str:
    transcript = _CALLER.sub("(elsa@laptop)", transcript)
    section = f"## {title}\n\nAfter {time.monotonic() - begun:.0f} s:\n\n```\n{transcript}\n```\n"
    return f"{section}\n{note}\n" if note else section


def _document(sections: list[str], seconds: float) -> str:
    head = f"""\
# The first ten minutes

`python -m tests.e2e.first_ten_minutes` runs these commands and writes this file; a test of the release tier
(`tests/e2e/test_first_ten_minutes.py`) runs them, too. They took {seconds:.0f} seconds on two cores, after the
README's command that installs BCS (about a minute).

`bcs dev --demo` runs in one terminal. All other commands run in a second terminal, in the same folder: type
`. .venv/bin/activate` there, then paste the `export` lines that `bcs dev` prints. While it runs,
<http://127.0.0.1:4002/ui> shows everything in a browser.
"""
    tail = """\
## And an alert?

[monitoring.md](monitoring.md#to-try-it-beside-bcs-dev) has the commands that start Prometheus beside `bcs dev`, let
an alert fire, and find what to do.
"""
    return "\n".join([head, *sections, tail])


if __name__ == "__main__":
    DOCUMENT.write_text(play())
