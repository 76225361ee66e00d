"""``python -m benchmarks``: start everything, measure, and say it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
import structlog
import typer

from benchmarks import checking, growing, ingesting, large, mixed, remembering, replicas, resolving
from benchmarks.chart import draw
from benchmarks.measured import Measured
from benchmarks.report import Report, compared
from benchmarks.usage import resident_megabytes
from benchmarks.world import built
from tests.support.apache_kafka import ApacheKafkaMissing, fetch

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seconds: float
    rounds: int
    events: int
    batches: int
    essays: int
    huge: int
    memory_events: int
    record_facts: int
    apache: bool


@cli.command()
def main(
    seconds: Annotated[float, typer.Option(help="How long each measurement of answers takes.")] = 4.0,
    rounds: Annotated[int, typer.Option(help="How often the variants take turns; the median counts.")] = 3,
    events: Annotated[int, typer.Option(help="How many events are taken in at a time.")] = 60_000,
    batches: Annotated[int, typer.Option(help="How many batches there are where growth is looked at; 0: not.")] = 0,
    essays: Annotated[int, typer.Option(help="How many essays a large batch has.")] = 3_000,
    huge: Annotated[int, typer.Option(help="How many essays the largest batch has; 0: no large batches.")] = 300_000,
    memory_events: Annotated[int, typer.Option(help="Over so many events memory is looked at; 0: not.")] = 0,
    record_facts: Annotated[
        int, typer.Option(help="How many facts there are in the permanent record; 0: it is left out.")
    ] = 1_000_000,
    apache: Annotated[bool, typer.Option(help="Take events in from Apache Kafka too, where it can be had.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to keep the figures.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Where to draw them, as SVG.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Measure nothing; show two kept runs side by side.")
    ] = None,
    draw_from: Annotated[Path | None, typer.Option(help="Measure nothing; draw a kept run.")] = None,
) -> None:
    """What BCS costs, beside what aiohttp alone does in the same run. One process; all servers share its machine."""
    if compare:
        typer.echo(compared(Report.load(compare[0]), Report.load(compare[1])))
        return
    # The figures alone go to standard output; what a record logs is for a service.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    plan = Plan(seconds, rounds, events, batches, essays, huge, memory_events, record_facts, apache)
    report = Report.load(draw_from) if draw_from else _run(plan)
    typer.echo(report.table())
    if json_file:
        report.save(json_file)
    if chart:
        draw(report, chart)


def _run(plan: Plan) -> Report:
    with tempfile.TemporaryDirectory(prefix="bcs-bench-") as directory:
        return anyio.run(_measure, Path(directory), plan, backend_options={"use_uvloop": True})


async def _measure(directory: Path, plan: Plan) -> Report:
    async with built(directory / "embedded", plan.events) as world:
        idle = resident_megabytes(world.service.process.pid)
        rows = await resolving.side_by_side(world, plan.seconds, plan.rounds)
        checked, of_checks = await checking.measured(world, plan.seconds)
        rows += checked
        rows += await mixed.measured(world, plan.seconds, plan.rounds)
        rows += await ingesting.measured(world, plan.rounds, plan.events)
        if plan.huge:
            rows += await large.measured(world, plan.seconds, plan.rounds, plan.essays, plan.huge)
        if plan.batches:
            rows += await growing.measured(world, plan.seconds, plan.rounds, plan.batches, plan.essays)
        others = {
            "seconds from start to ready": world.start_seconds,
            "MB resident, idle": idle,
            "bytes in Redis for a batch of 30 essays and 5 phases": float(await resolving.bytes_of_a_batch(world)),
            **of_checks,
        }
        if plan.huge:
            others[f"ms of the longest stall, summary of {plan.huge} essays"] = await large.longest_stall_ms(world)
        rows_of_replicas, conflicts = await replicas.measured(world, plan.rounds, plan.events)
        rows += rows_of_replicas
        others["commits of several replicas that conflicted"] = conflicts
        if plan.memory_events:
            others |= await ingesting.memory(world, plan.memory_events)
        if plan.record_facts:
            of_record, figures = await remembering.measured(
                world, directory / "record", plan.seconds, plan.rounds, plan.events, plan.record_facts
            )
            rows += of_record
            others |= figures
    if plan.apache:
        rows += await _from_apache_kafka(directory / "apache", plan)
    return Report(rows, others)


async def _from_apache_kafka(directory: Path, plan: Plan) -> list[Measured]:
    try:
        jars = fetch()
    except ApacheKafkaMissing as missing:
        typer.echo(f"without Apache Kafka: {missing}", err=True)
        return []
    async with built(directory, plan.events, jars) as world:
        return await ingesting.measured(world, plan.rounds, plan.events)


if __name__ == "__main__":
    cli()
