"""Row 13: ten times the load that one process takes. What is too much is refused in time; the process stays alive and
in its group, needs no more memory, and afterwards makes everything good.
"""

import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.chaos.callers import Callers
from tests.chaos.figures import Note
from tests.chaos.ground import Ground, prepared
from tests.chaos.history import History
from tests.chaos.load import Load, LoadProcess, Tally, assert_kept
from tests.chaos.sizes import SIZES
from tests.support.service import BcsProcess, Orchestrator
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NAME, SEED = "overload", 13
# What the process takes at a time, by its settings, and how much more it is given.
REQUESTS, EVENTS, TIMES = SIZES.overload_requests, SIZES.overload_events, 10
FEW = 4
ALONE_SECONDS = 1.0
DEADLINE_SECONDS = 5.0 if IN_FULL else 2.0
# Before a request is read, and before its answer is, hundreds of others have their turn.
TURNS_SECONDS = 1.0
# The summaries and answers that a process keeps are as many as they may be after so many resolutions. At a commit there
# is no time for them, and few batches.
WARM_RESOLUTIONS = 5000 if IN_FULL else 0
WARM_UP_SECONDS = 120
FLAT = 0.10
PROBE_SECONDS = min(0.2, SIZES.overload_seconds / 15)
CHUNK = EVENTS // 2
# Told over and over, until it is enough: however quick the service is, it never runs out of work.
ALL_EVENTS = TIMES * EVENTS
LEAST_PROBES = 3
PROBED_SECONDS = 2.0
ENVIRONMENT = {
    "BCS_HTTP_MAX_CONCURRENT_REQUESTS": REQUESTS,
    "BCS_INTAKE_MAX_IN_FLIGHT": EVENTS,
    "BCS_REQUEST_DEADLINE_SECONDS": DEADLINE_SECONDS,
    "BCS_REDIS_DEADLINE_SECONDS": 0.4 * DEADLINE_SECONDS,
}


class Crowd:
    """Everybody who wants something of one process, and what they see of it.

    :param megabytes: of its memory, by the time.
    :param probes: how long each liveness probe took.
    :param fewest: so many events waited in Kafka at the least.
    :param sent: how many events were told.
    """

    def __init__(self, ground: Ground, process: BcsProcess) -> None:
        self.ground, self.process = ground, process
        self.callers = Callers([process.base], NAME)
        self.history = History(SEED, ALL_EVENTS, NAME)
        self.sent = 0
        self.megabytes: list[tuple[float, float]] = []
        self.probes: list[float] = []
        self.fewest = 2 * TIMES * EVENTS
        self._next = cycle(self.history.told)
        self._admin = AIOKafkaAdminClient(bootstrap_servers=ground.kafka)

    async def __aenter__(self) -> "Crowd":
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()

    async def tell(self, count: int) -> None:
        """Tell so many more events."""
        for start in range(0, count, CHUNK):
            chunk = list(islice(self._next, min(CHUNK, count - start)))
            await self.ground.platform.send(*(one.event for one in chunk))
            self.sent += len(chunk)

    async def waiting(self) -> int:
        """How many events wait in Kafka, or are in hand."""
        behind = await self.ground.platform.uncommitted(NAME)
        return sum(end - (committed or 0) for committed, end in behind.values())

    async def keep_waiting(self) -> None:
        """See to it that there are always ten times as many as can be in hand, and twice that to begin with."""
        while True:
            waiting = await self.waiting()
            self.fewest = min(self.fewest, waiting)
            await self.tell(max(0, 2 * TIMES * EVENTS - waiting))

    async def member(self) -> tuple[str, str]:
        """The state of the consumer group, and who is in it: one that was thrown out comes back as another."""
        [answer] = await self._admin.describe_consumer_groups([NAME])
        found: Any = answer.groups[0]
        [member] = found[5]
        return found[2], member[0]

    async def probe(self) -> None:
        """Ask for signs of life, as those who would end the process do."""
        while True:
            async with Orchestrator(self.process.base) as prober:
                began = time.monotonic()
                assert (await prober.get("/healthz")).status == 200
                self.probes.append(time.monotonic() - began)
            # As often as an orchestrator of containers asks, in proportion.
            await anyio.sleep(PROBE_SECONDS)

    async def weigh(self) -> None:
        """Look at the memory."""
        while True:
            self.megabytes.append((time.monotonic(), megabytes_of(self.process)))
            # Memory is sampled evenly.
            await anyio.sleep(0.05)

    def memory(self, began: float) -> tuple[float, float]:
        """Its median in the first third after the warm-up, and in the last."""
        warm = [megabytes for at, megabytes in self.megabytes if at > began]
        third = len(warm) // 3
        return median(warm[:third]), median(warm[-third:])

    def load(self, name: str) -> Load:
        """A load on it."""
        return Load(int(self.process.environment["BCS_HTTP_PORT"]), name, self.callers.done, self.callers.undone)

    async def warm(self) -> bool:
        """Whether the process has answered so often that it keeps all that it may keep."""
        async with Orchestrator(self.process.base) as orchestrator:
            resolved = await orchestrator.metric("bcs_pipeline_resolutions_total", status="success")
            return (resolved or 0) >= WARM_RESOLUTIONS

    async def busy(self, requests: int) -> bool:
        """Whether so many requests are being answered, this one included."""
        async with Orchestrator(self.process.base) as orchestrator:
            return (await orchestrator.metric("bcs_http_requests_in_flight") or 0) >= requests


def megabytes_of(process: BcsProcess) -> float:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


@asynccontextmanager
async def crowd_around(directory: Path) -> AsyncIterator[Crowd]:
    async with prepared(directory, NAME) as ground:
        with ground.serve("process", **ENVIRONMENT) as process:
            await process.answers()
            async with Crowd(ground, process) as crowd:
                await crowd.callers.prepare(ground.platform)
                yield crowd
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0


async def test_ten_times_the_load_is_refused_in_time_and_costs_no_memory(tmp_path: Path, note_figure: Note) -> None:
    async with crowd_around(tmp_path) as crowd:
        # What it is compared with in the figures, where there is time for that.
        alone = await alone_with_few(crowd, tmp_path) if IN_FULL else None
        member = await crowd.member()
        with LoadProcess(crowd.load("many"), TIMES * REQUESTS, tmp_path / "many") as many:
            await wait_until(partial(crowd.busy, REQUESTS), description="there are more callers than it takes")
            await crowd.tell(2 * TIMES * EVENTS)
            async with anyio.create_task_group() as group:
                group.start_soon(crowd.keep_waiting)
                group.start_soon(crowd.probe)
                group.start_soon(crowd.weigh)
                await wait_until(crowd.warm, WARM_UP_SECONDS, description="its caches are full")
                began = time.monotonic()
                # The load lasts for so long.
                await anyio.sleep(SIZES.overload_seconds)
                await wait_until(lambda: len(crowd.probes) >= LEAST_PROBES, description="it gives signs of life")
                group.cancel_scope.cancel()
            over, left = time.monotonic(), await crowd.waiting()
            tally = await many.enough()
        answers, rate = dict(tally.outcomes), tally.rate
        assert tally.pruned
        assert tally.recorded
        if alone:
            tally.add(alone)
        await assert_kept(tally, crowd.callers, crowd.history, crowd.ground)
        recovered = time.monotonic() - over
        warm, last = crowd.memory(began)
        usual = f"takes {alone.rate:.0f} requests/s from {FEW} callers; " if alone else ""
        note_figure(
            13,
            f"{usual}offered for {SIZES.overload_seconds:.1f} s: {TIMES * REQUESTS} callers without a pause where it "
            f"takes {REQUESTS} at a time, and never fewer than {crowd.fewest} events waiting where it holds {EVENTS}; "
            f"{rate:.0f} answers/s, {answers}, the slowest after {tally.slowest:.2f} s; "
            f"{len(crowd.probes)} liveness probes, the slowest {max(crowd.probes):.2f} s; "
            f"memory {warm:.1f} MB after the warm-up, {last:.1f} MB at the end; "
            f"{left} events left over, all applied and announced {recovered:.1f} s later",
        )
        assert answers.keys() == {"200", "503"}, answers
        assert answers["503"] > TIMES * REQUESTS, "what is too much was refused"
        assert answers["200"] > REQUESTS, "and what was not, answered"
        assert crowd.sent >= ALL_EVENTS
        assert tally.slowest < DEADLINE_SECONDS + TURNS_SECONDS
        assert max(crowd.probes) < PROBED_SECONDS
        assert crowd.fewest > 2 * EVENTS, "there was always more than it could hold"
        assert await crowd.member() == member, "it was never thrown out of its group"
        assert "offset_commit_failed" not in crowd.process.log.read_text()
        assert abs(last - warm) <= FLAT * warm
        async with Orchestrator(crowd.process.base) as orchestrator:
            assert [name for name, _, value in await orchestrator.samples() if "restarts_total" in name and value] == []
            assert await orchestrator.to_run(crowd.callers.undone) == ["spellcheck", "ai_feedback"]


async def alone_with_few(crowd: Crowd, directory: Path) -> Tally:
    """What it takes."""
    with LoadProcess(crowd.load("few"), FEW, directory / "few") as few:
        await wait_until(partial(crowd.busy, FEW))
        # A rate needs a time.
        await anyio.sleep(ALONE_SECONDS)
        return await few.enough()
