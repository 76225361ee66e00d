"""The output of `bcs dlq replay`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bcs.cli.output import on_terminal, print_json
from bcs.ops.wording import printable
from bcs.wire.dead_letters.decode import DeadLetterPosition

if TYPE_CHECKING:
    from bcs.ops.dlq.replaying import Replayed

_PRINTED_EVERY = 1000


@dataclass(slots=True)
class Outcome:
    """The results of a replay so far."""

    wanted: int
    quiet: bool
    progress: Progress | None
    replayed: int = 0
    failed: dict[DeadLetterPosition, str] = field(default_factory=dict)

    def notify(self, replayed: Replayed) -> None:
        """Add the result for a dead letter."""
        if replayed.problem is None:
            self.replayed += 1
        else:
            self.failed[replayed.dead_letter.position] = replayed.problem
            if not self.quiet:
                typer.echo(printable(f"{replayed.dead_letter.position}: not replayed: {replayed.problem}"), err=True)
        decided = self.replayed + len(self.failed)
        if self.progress:
            self.progress.advance(self.progress.task_ids[0])
        elif not self.quiet and decided % _PRINTED_EVERY == 0:
            typer.echo(f"{decided} of {self.wanted}")


@contextmanager
def print_progress(wanted: int, *, as_json: bool) -> Iterator[Outcome]:
    """Print a progress bar on a terminal, or a line from time to time elsewhere; at the end, print the result."""
    if on_terminal() and not as_json:
        columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console()) as progress:
            progress.add_task("replaying", total=wanted)
            outcome = Outcome(wanted, quiet=False, progress=progress)
            yield outcome
    else:
        outcome = Outcome(wanted, quiet=as_json, progress=None)
        yield outcome
    if as_json:
        failed = {str(position): problem for position, problem in sorted(outcome.failed.items())}
        print_json({"selected": wanted, "replayed": outcome.replayed, "failed": failed})
    else:
        typer.echo(f"{outcome.replayed} of {wanted} dead letters replayed, {len(outcome.failed)} failed.")
