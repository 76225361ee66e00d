"""``python -m benchmarks``: start everything, measure, and say it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import anyio
import typer

from benchmarks import ingesting, resolving
from benchmarks.measured import Measured, middle
from benchmarks.report import Report, compared
from benchmarks.usage import resident_megabytes
from benchmarks.world import World, built

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    seconds: Annotated[float, typer.Option(help="How long each measurement of resolutions takes.")] = 4.0,
    rounds: Annotated[int, typer.Option(help="How often the variants take turns; the median counts.")] = 3,
    events: Annotated[int, typer.Option(help="How many events are taken in at a time.")] = 60_000,
    batches: Annotated[int, typer.Option(help="How many batches there are where the cost's growth is looked at.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to keep the figures.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Measure nothing; show two kept runs side by side.")
    ] = None,
) -> None:
    """What BCS costs, beside what aiohttp alone does in the same run. One process; all servers share its machine."""
    if compare:
        typer.echo(compared(Report.load(compare[0]), Report.load(compare[1])))
        return
    with tempfile.TemporaryDirectory(prefix="bcs-bench-") as directory:
        report = anyio.run(
            _measure, Path(directory), seconds, rounds, events, batches, backend_options={"use_uvloop": True}
        )
    typer.echo(report.table())
    if json_file:
        report.save(json_file)


async def _measure(directory: Path, seconds: float, rounds: int, events: int, batches: int) -> Report:
    async with built(directory) as world:
        idle = resident_megabytes(world.service.process.pid)
        rows = await resolving.side_by_side(world, seconds, rounds)
        rows += await _ingest(world, rounds, events)
        if batches:
            rows += await resolving.growth(world, seconds, batches, essays=3_000)
        others = {
            "seconds from start to ready": world.start_seconds,
            "MB resident, idle": idle,
            "bytes in Redis for a batch of 30 essays and 5 phases": float(await resolving.bytes_of_a_batch(world)),
        }
        return Report(rows, others, world.broker)


async def _ingest(world: World, rounds: int, events: int) -> list[Measured]:
    one, many = list[Measured](), list[Measured]()
    await ingesting.measure(world, "warm-up", "warm-up", max(1, events // 20), 10)
    for turn in range(rounds):
        one.append(await ingesting.measure(world, "ingest, one batch", f"one-{turn}", events, 1))
        many.append(await ingesting.measure(world, "ingest, 200 batches", f"many-{turn}", events // 2, 200))
    return [middle(one), middle(many)]


if __name__ == "__main__":
    cli()
