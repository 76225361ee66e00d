"""What `bcs db rebuild` prints while it works, and in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bcs.cli.output import on_terminal, print_json
from bcs.ops.wording import counted

if TYPE_CHECKING:
    from bcs.ops.rebuild.projecting import Tally
    from bcs.ops.rebuild.reading import PastReader


@dataclass(slots=True)
class Told:
    """A rebuild, as it is told. Used as a block around it, at whose end the summary is printed.

    :param complete: to be set when it is through.
    """

    as_json: bool
    complete: bool = False
    _began: float = field(default_factory=time.monotonic, init=False)
    _progress: Progress | None = field(default=None, init=False)
    _past: PastReader | None = field(default=None, init=False)
    _tally: Tally | None = field(default=None, init=False)

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()
        if self._past and self._tally:
            self._summarize(self._past, self._tally)

    def begun(self, past: PastReader, tally: Tally) -> Callable[[], None]:
        """There is this to read; nothing has been read yet."""
        self._past, self._tally, self._began = past, tally, time.monotonic()
        if self.as_json or not on_terminal():
            return lambda: None
        columns = (TextColumn("rebuilding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = self._progress = Progress(*columns, console=Console())
        task = progress.add_task("rebuilding", total=past.total)
        progress.start()
        return lambda: progress.update(task, completed=tally.messages, total=past.total)

    def _summarize(self, past: PastReader, tally: Tally) -> None:
        seconds = time.monotonic() - self._began
        rate = tally.messages / seconds if seconds else 0.0
        if self.as_json:
            print_json(self._document(past, tally, seconds, rate))
            return
        extent = "" if self.complete else f" of {past.total}"
        typer.echo(f"{tally.messages}{extent} messages read in {seconds:.1f} s, {rate:.0f} a second:")
        facts = f"{counted(tally.facts, 'fact')} of {counted(len(tally.batches), 'batch', 'batches')}"
        typer.echo(f"  {facts} are in the record")
        typer.echo(f"  {counted(tally.without_facts, 'message')} had no facts, {tally.undecodable} were undecodable")
        if tally.refused:
            typer.echo(f"  {counted(tally.refused, 'message')} can't be stored")
        if not self.complete:
            typer.echo("It was stopped. Run it again to begin anew; what is done twice changes nothing.")

    def _document(self, past: PastReader, tally: Tally, seconds: float, rate: float) -> dict[str, Any]:
        return {
            "complete": self.complete,
            "messages": tally.messages,
            "facts": tally.facts,
            "batches": len(tally.batches),
            "undecodable": tally.undecodable,
            "without_facts": tally.without_facts,
            "refused": tally.refused,
            "seconds": round(seconds, 3),
            "messages_per_second": round(rate, 1),
            "partitions": [
                {"topic": partition.topic, "partition": partition.partition, "first": extent.first, "end": extent.end}
                for partition, extent in past.ranges.items()
            ],
        }
