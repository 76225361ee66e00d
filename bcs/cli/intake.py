"""`bcs intake`: the orders of an operator to the intake."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from bcs.cli.options import PANEL, AsJson, command_group
from bcs.cli.output import plain, present, print_json, table
from bcs.domain.history import Position
from bcs.domain.skips import SkipEvent, SkipOrder, SkipOutcome
from bcs.errors import BcsError, PartitionStalled, UnknownTopic
from bcs.ops.operators import operator
from bcs.ops.wording import counted, printable
from bcs.runtime import running
from bcs.wire import topics
from bcs.wire.published import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcs.config.settings import Settings
    from bcs.ops.dlq.reading import DeadLetterReader

app = command_group("intake")

_FAILED = 1
_POLL_SECONDS = 0.2
_MOST_AT_A_TIME = 1000


@app.callback(rich_help_panel=PANEL)
def intake() -> None:
    """The intake of Kafka events: skip a message that blocks its partition."""


def _consumed(topic: str) -> str:
    if topic not in topics.CONSUMED:
        raise typer.BadParameter(f"BCS consumes {', '.join(topics.CONSUMED)}")
    return topic


@app.command()
def skip(
    topic: Annotated[str, typer.Argument(callback=_consumed, help="A topic that BCS consumes.", show_default=False)],
    partition: Annotated[int, typer.Argument(min=0, show_default=False)],
    offset: Annotated[int, typer.Argument(min=0, show_default=False)],
    reason: Annotated[str, typer.Option(help="The reason, for the dead letter and the history.")],
    through: Annotated[
        int | None, typer.Option(min=0, metavar="OFFSET", help="Skip all messages up to this offset, too.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=3600, metavar="SECONDS", help="How long to wait for the service to skip it.")
    ] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Skip a message, after a confirmation: it becomes a dead letter, and the intake reads on after it.

    The replica that has the partition does this within a second or two; if no replica runs, the next one that starts
    does it. The dead letter has the message's bytes, or only its position where they can't be read. `bcs dlq replay`
    replays it.
    """
    from bcs.config.loading import load_settings
    from bcs.ops.stores import StateInMemory

    settings = load_settings()
    if settings.use_mock_repository:
        raise StateInMemory
    if not reason.strip():
        raise typer.BadParameter("a reason is required", param_hint="--reason")
    last = offset if through is None else through
    if not offset <= last < offset + _MOST_AT_A_TIME:
        raise typer.BadParameter(
            f"at most {_MOST_AT_A_TIME} messages, from the first to the last", param_hint="--through"
        )
    # BCS prints each error once, in its own line.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    positions = [Position(topic, partition, each) for each in range(offset, last + 1)]
    typer.echo(running.run(_description, settings, positions), err=as_json)
    if not yes:
        typer.confirm(f"Skip {counted(len(positions), 'message')}?", abort=True, err=as_json)
    orders = [SkipOrder(position, reason.strip(), operator(), rfc3339(datetime.now(UTC))) for position in positions]
    events = running.run(_order, settings, orders, wait)
    _print_events(events, as_json=as_json)
    if any(event.outcome not in (SkipOutcome.SKIPPED, SkipOutcome.SKIPPED_UNREAD) for event in events):
        raise typer.Exit(_FAILED)


@app.command()
def withdraw(
    topic: Annotated[str, typer.Argument(callback=_consumed, help="A topic that BCS consumes.", show_default=False)],
    partition: Annotated[int, typer.Argument(min=0, show_default=False)],
    offset: Annotated[int, typer.Argument(min=0, show_default=False)],
) -> None:
    """Withdraw an order to skip a message, before a replica has carried it out. Exits with 1 if no order waits."""
    from bcs.config.loading import load_settings
    from bcs.ops.stores import StateInMemory

    settings = load_settings()
    if settings.use_mock_repository:
        raise StateInMemory
    order = running.run(_withdraw, settings, Position(topic, partition, offset))
    if order is None:
        typer.echo(f"No order waits for {topic}/{partition}/{offset}.", err=True)
        raise typer.Exit(_FAILED)
    typer.echo(f"Withdrawn: the order to skip {topic}/{partition}/{offset} ({printable(order.reason)}).")


@app.command()
def history(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many entries at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the orders to skip messages, with operator, reason and outcome; newest first."""
    from bcs.config.loading import load_settings
    from bcs.ops.stores import StateInMemory

    settings = load_settings()
    if settings.use_mock_repository:
        raise StateInMemory
    events = running.run(_history, settings, limit)
    if not events and not as_json:
        typer.echo("There was never an order to skip a message.")
        return
    _print_events(events, as_json=as_json)


async def _description(settings: Settings, positions: Sequence[Position]) -> str:
    """Describe the message at the first of these positions.

    :raises UnknownTopic: the topic does not have such a partition.
    :raises NothingThere: there is no message at the position.
    """
    from bcs.ops.dlq.reading import dead_letter_reader

    first = positions[0]
    place = f"{first.topic}/{first.partition}/{first.offset}"
    async with dead_letter_reader(settings) as reader:
        if first.partition not in {each.partition for each in await reader.partitions([first.topic])}:
            raise UnknownTopic((f"{first.topic} with a partition {first.partition}",))
        try:
            record = await reader.record_at(first.topic, first.partition, first.offset)
        except PartitionStalled as error:
            return f"{place} can't be read: {error.cause}. Its dead letter will only have its position."
        if record is not None and len(positions) > 1:
            await _ensure_there(reader, positions[-1])
    if record is None:
        raise NothingThere(place)
    size = counted(len(record.value or b""), "byte")
    key = "no key" if record.key is None else f"key {printable(record.key.decode(errors='replace'))[:80]}"
    return f"{place}: {size}, {key}, written {rfc3339(datetime.fromtimestamp(max(0, record.timestamp) / 1000, UTC))}"


async def _ensure_there(reader: DeadLetterReader, position: Position) -> None:
    # An order for a future message could turn a valid message into a dead letter.
    try:
        record = await reader.record_at(position.topic, position.partition, position.offset)
    except PartitionStalled:
        return
    if record is None:
        raise NothingThere(f"{position.topic}/{position.partition}/{position.offset}")


class NothingThere(BcsError):
    """There is no message at the position that the operator named.

    :param place: topic, partition and offset.
    """

    def __init__(self, place: str) -> None:
        super().__init__(
            f"there is no message at {place}: it was deleted, is not written yet, or is a transaction's marker"
        )
        self.place = place


async def _order(settings: Settings, orders: Sequence[SkipOrder], wait_seconds: float) -> list[SkipEvent]:
    """Place the orders, and wait for their outcomes; the outcome of an order that still waits is `ORDERED`."""
    from bcs.ops.stores import connected
    from bcs.storage.redis.skips import RedisSkips

    async with connected(settings) as nodes:
        skips = RedisSkips(nodes, key_prefix=settings.redis_key_prefix)
        for order in orders:
            await skips.order(order)
        with anyio.move_on_after(wait_seconds):
            places = {order.position for order in orders}
            while places & {each.order.position for each in await skips.waiting()}:  # noqa: ASYNC110 (another process acts)
                await anyio.sleep(_POLL_SECONDS)
        wanted = set(orders)
        newest = await skips.history(10 * len(orders) + 100)
    events = {event.order: event for event in reversed(newest) if event.order in wanted}
    return [events[order] for order in orders if order in events]


async def _withdraw(settings: Settings, position: Position) -> SkipOrder | None:
    from bcs.ops.stores import connected
    from bcs.storage.redis.skips import RedisSkips

    async with connected(settings) as nodes:
        skips = RedisSkips(nodes, key_prefix=settings.redis_key_prefix)
        return await skips.withdraw(position, at=rfc3339(datetime.now(UTC)), by=operator())


async def _history(settings: Settings, limit: int) -> list[SkipEvent]:
    from bcs.ops.stores import connected
    from bcs.storage.redis.skips import RedisSkips

    async with connected(settings) as nodes:
        return await RedisSkips(nodes, key_prefix=settings.redis_key_prefix).history(limit)


def _print_events(events: Sequence[SkipEvent], *, as_json: bool) -> None:
    rows = [
        {
            "topic": event.order.position.topic,
            "partition": event.order.position.partition,
            "offset": event.order.position.offset,
            "outcome": event.outcome.value,
            "at": event.at,
            "by": event.by,
            "reason": event.order.reason,
            "ordered_by": event.order.ordered_by,
            "ordered_at": event.order.ordered_at,
        }
        for event in events
    ]
    if as_json:
        print_json({"skips": rows})
        return
    page = table("message", "outcome", "at", "by", "reason")
    for row in rows:
        place = f"{row['topic']}/{row['partition']}/{row['offset']}"
        page.add_row(*(plain(text) for text in (place, row["outcome"], row["at"], row["by"], row["reason"])))
    present(page)
