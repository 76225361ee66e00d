"""The output of `bcs db rebuild`: the progress, and a summary."""

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
    from bcs.ops.rebuild.reading import OrderedTopicReader
    from bcs.ops.rebuild.rebuilder import RebuildStats


@dataclass(slots=True)
class RebuildOutput:
    """The output of a rebuild. This is a context manager, which prints the summary at its end.

    :param complete: set by the caller once the rebuild is complete.
    """

    as_json: bool
    complete: bool = False
    _began: float = field(default_factory=time.monotonic, init=False)
    _progress: Progress | None = field(default=None, init=False)
    _reader: OrderedTopicReader | None = field(default=None, init=False)
    _stats: RebuildStats | None = field(default=None, init=False)

    def __enter__(self) -> RebuildOutput:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()
        if self._reader and self._stats:
            self._summarize(self._reader, self._stats)

    def begun(self, reader: OrderedTopicReader, stats: RebuildStats) -> Callable[[], None]:
        """Show the start of a rebuild, before the first message is read."""
        self._reader, self._stats, self._began = reader, stats, time.monotonic()
        if self.as_json or not on_terminal():
            return lambda: None
        columns = (TextColumn("rebuilding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = self._progress = Progress(*columns, console=Console())
        task = progress.add_task("rebuilding", total=reader.total)
        progress.start()
        return lambda: progress.update(task, completed=stats.messages, total=reader.total)

    def _summarize(self, reader: OrderedTopicReader, stats: RebuildStats) -> None:
        seconds = time.monotonic() - self._began
        rate = stats.messages / seconds if seconds else 0.0
        if self.as_json:
            print_json(self._document(reader, stats, seconds, rate))
            return
        extent = "" if self.complete else f" of {reader.total}"
        typer.echo(f"{stats.messages}{extent} messages read in {seconds:.1f} s, {rate:.0f} a second:")
        facts = f"{counted(stats.facts, 'fact')} of {counted(len(stats.batches), 'batch', 'batches')}"
        typer.echo(f"  {facts} are in the archive")
        typer.echo(f"  {counted(stats.without_facts, 'message')} had no facts, {stats.undecodable} were undecodable")
        if stats.refused:
            typer.echo(f"  {counted(stats.refused, 'message')} can't be stored")
        if not self.complete:
            typer.echo(
                "The rebuild was stopped. Run it again from the beginning; facts that are written twice change nothing."
            )

    def _document(self, reader: OrderedTopicReader, stats: RebuildStats, seconds: float, rate: float) -> dict[str, Any]:
        return {
            "complete": self.complete,
            "messages": stats.messages,
            "facts": stats.facts,
            "batches": len(stats.batches),
            "undecodable": stats.undecodable,
            "without_facts": stats.without_facts,
            "refused": stats.refused,
            "seconds": round(seconds, 3),
            "messages_per_second": round(rate, 1),
            "partitions": [
                {"topic": partition.topic, "partition": partition.partition, "first": extent.first, "end": extent.end}
                for partition, extent in reader.ranges.items()
            ],
        }
