"""What open pages `/ui` cost the service: `python -m tests.e2e.page_cost` prints the figures of docs/ui.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
from pydantic_core import to_json

from bcs.actors.messages import ApplyFacts
from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.observability.failpoints import FailPoint
from tests.support.event_streams import OpenStream, open_stream
from tests.support.service import RunningService, running_service

BATCHES = 2000
PAGES = 8
_MEASURED_SECONDS = 5.0
_ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """The work of the thread that runs the service, as shares of a core.

    :param none: without an open page.
    :param one: with one.
    :param many: with `PAGES` of them.
    :param snapshot_bytes: the size of a snapshot.
    """

    none: float
    one: float
    many: float
    snapshot_bytes: int

    @property
    def first_page(self) -> float:
        """What the first open page adds."""
        return self.one - self.none

    @property
    def further_page(self) -> float:
        """What each further one adds."""
        return (self.many - self.one) / (PAGES - 1)


async def measure() -> Cost:
    """Measure, while each of 2,000 batches has an actor with a message."""
    gate: list[anyio.Event] = []

    async def held(point: FailPoint, _: str) -> None:
        if point is FailPoint.BATCH_RECEIVED:
            await gate[0].wait()

    settings = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1", "hang_seconds": 600.0}
    async with running_service(held, **settings, ui_max_streams=PAGES, batch_index_max_batches=10_000) as running:
        gate.append(running.call(anyio.Event))
        try:
            running.call(_deliver, running)
            none = await _least_share(running, ())
            async with open_stream(running.base) as stream:
                snapshot = await stream.snapshot()
                [batches] = [child for child in snapshot["actors"]["children"] if child["path"] == "batches"]
                assert batches["total_children"] == BATCHES
                one = await _least_share(running, (stream,))
            async with AsyncExitStack() as stack:
                streams = [await stack.enter_async_context(open_stream(running.base)) for _ in range(PAGES)]
                many = await _least_share(running, streams)
        finally:
            running.call(gate[0].set)
    return Cost(none, one, many, len(to_json(snapshot)))


def _deliver(running: RunningService) -> None:
    at_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    for number in range(BATCHES):
        batch_id = f"batch-{number:032x}"
        fact = EssayPhaseEnded(phase="spellcheck", essay_id="essay-1", outcome=Outcome.COMPLETED, at_us=at_us)
        running.service.batches.deliver_nowait(batch_id, ApplyFacts(batch_id, (fact,)))


async def _least_share(running: RunningService, streams: Sequence[OpenStream]) -> float:
    """The share of a core that the thread of the service takes while the streams are read; the least of some rounds."""
    async with anyio.create_task_group() as group:
        for stream in streams:
            group.start_soon(stream.rest)
        shares = []
        for _ in range(_ROUNDS):
            began, work = time.perf_counter(), running.call(time.thread_time)
            await anyio.sleep(_MEASURED_SECONDS)  # what is measured is the work in a time
            shares.append((running.call(time.thread_time) - work) / (time.perf_counter() - began))
        group.cancel_scope.cancel()
    return min(shares)


def said(cost: Cost) -> str:
    """The figures as a sentence."""
    return (
        f"With {BATCHES:,} batches at work, the first open page costs {cost.first_page:.2%} of a core, and each "
        f"further one {cost.further_page:.2%}; without a page the service takes {cost.none:.2%}. A snapshot has "
        f"{cost.snapshot_bytes:,} bytes."
    )


def main() -> int:
    """Print the figures."""
    sys.stdout.write(f"{said(anyio.run(measure))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
