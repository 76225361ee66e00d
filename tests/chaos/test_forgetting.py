"""Row 18: Redis forgets everything, again and again, and every answer is what the model says.

Two replicas share Redis, PostgreSQL, and the group. The order of events, and the moments, are drawn from a seed.
"""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import anyio
import pytest

from bcs.config.pipelines import load_pipelines
from bcs.devtools.servers.postgres import PostgresServer
from bcs.storage.redis.nodes import Nodes
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.chaos.figures import Note, percentile
from tests.chaos.forgetting import PIPELINE, REPORTED, Bounds, completions, roster
from tests.chaos.ground import Ground, prepared
from tests.chaos.history import Told
from tests.chaos.sizes import SIZES
from tests.support.kafka import values
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

EVENTS_OF_A_BATCH = 5
CHUNK = 20
CALLERS = 6
REPLICAS = 2
LONGEST_PAUSE_SECONDS = 0.2
# Measured: one in a hundred at a release, 20 at a commit.
LEAST_FLUSHES = max(5, SIZES.flushed_events // 200)
# PostgreSQL is there all the time: a machine that is slow is no reason to take it for away, and what waits for it in
# Redis would be forgotten.
SETTINGS = {
    "BCS_DATABASE_DEADLINE_SECONDS": 8,
    "BCS_REDIS_DEADLINE_SECONDS": 9,
    "BCS_REQUEST_DEADLINE_SECONDS": 20,
    "BCS_INTAKE_COMMIT_INTERVAL_SECONDS": 0.05,
}


class Flushed:
    """Two services, whose Redis forgets.

    :param flushes: how often that began; and :attr:`flushed`, ended.
    :param pruned: how many phases answers left out.
    :param owed: what must be announced: request, batch and phase.
    """

    def __init__(self, ground: Ground, doors: list[Orchestrator], redis: Nodes, seed: int) -> None:
        self.ground, self.doors, self.redis = ground, doors, redis
        self.chance = Random(seed)
        self.batches = [f"batch-{number}" for number in range(SIZES.flushed_events // EVENTS_OF_A_BATCH)]
        self.bounds = Bounds(load_pipelines(None))
        self.flushes = self.flushed = self.asked = self.reported = self.pruned = 0
        self.seconds = list[float]()
        self.owed = set[tuple[str, str, str]]()
        self.current = list[str]()
        self.told = False
        self.done = False

    async def tell(self, events: list[Told]) -> None:
        """Tell events, no faster than they are asked about."""
        for start in range(0, len(events), CHUNK):
            chunk = events[start : start + CHUNK]
            self.current = [one.batch for one in chunk]
            for one in chunk:
                self.bounds.sending(one)
            for one, where in zip(chunk, await self.ground.platform.send(*(t.event for t in chunk)), strict=True):
                self.bounds.lies(one, (where.topic, where.partition, where.offset))
            await wait_until(partial(self._asked_about, start / len(events)), 60)

    async def report(self, worker: int) -> None:
        """Report a phase of every batch."""
        for number, batch in enumerate(self.batches[worker::CALLERS]):
            await wait_until(partial(self._asked_about, number * CALLERS / len(self.batches)), 60)
            delta = self.bounds.reporting(batch, time.time_ns() // 1000)
            answer = await self.doors[number % REPLICAS].complete(batch, REPORTED)
            assert answer.status == 200, answer.body
            self.bounds.reported(batch, delta)
            self.reported += 1

    def _asked_about(self, part: float) -> bool:
        return self.asked >= part * SIZES.flushed_events

    async def ask(self, worker: int) -> None:
        """Ask about any batch, until all is told."""
        chance = Random(f"{worker}")
        while not (self.told and self.asked >= SIZES.flushed_events):
            # Mostly about what changes at the moment.
            among = self.current if self.current and chance.random() < 0.8 else self.batches
            await self.ask_about(chance.choice(among), chance.choice(self.doors))

    async def ask_about(self, batch: str, door: Orchestrator) -> None:
        """One request: at least what was durable before it, at most what was sent before its answer."""
        at_least, began, request = self.bounds.at_least(batch), time.monotonic(), f"request-{self.asked}"
        self.asked += 1
        flushes, settled = self.flushes, self.flushes == self.flushed
        answer = await door.define(batch, PIPELINE, correlation_id=request)
        self.seconds.append(time.monotonic() - began)
        assert answer.status == 200, answer.body
        pruned = frozenset(answer.json["pruned_phases"])
        assert at_least <= pruned <= self.bounds.at_most(batch), (batch, self.flushes)
        self.bounds.show(batch, pruned)
        self.pruned += len(pruned)
        if settled and flushes == self.flushes:
            self.owed |= {(as_uuid(request), batch, phase) for phase in pruned}

    async def flush(self) -> None:
        """Make Redis forget, again and again."""
        while not self.done:
            # The schedule itself: at any moment.
            await anyio.sleep(self.chance.uniform(0, LONGEST_PAUSE_SECONDS))
            await self.forget()

    async def forget(self) -> None:
        """FLUSHALL. What waits for Kafka in there is forgotten with it. Of a cluster, now and then one node alone."""
        self.flushes += 1
        nodes = list(await self.redis.all_nodes())
        for node in self.chance.sample(nodes, self.chance.choice([1, len(nodes)])):
            await node.call(("FLUSHALL",))
        self.flushed += 1
        self.owed.clear()

    async def watch(self) -> None:
        """Look at the committed offsets."""
        while not self.done:
            await self.look()
            # Offsets are sampled: nobody tells when they move.
            await anyio.sleep(0.02)

    async def look(self) -> None:
        """Once."""
        sent = list(self.bounds.under_way)
        behind = await self.ground.platform.uncommitted(self.ground.name)
        for topic, partition, offset in sent:
            committed, _ = behind.get((topic, partition), (offset + 1, 0))
            self.bounds.committed(topic, partition, committed or 0)

    async def assert_exact(self) -> None:
        """Every answer of every replica is the model's."""
        async with anyio.create_task_group() as group:
            for door in self.doors:
                group.start_soon(self._ask_about_all, door)

    async def _ask_about_all(self, door: Orchestrator) -> None:
        for batch in self.batches:
            assert self.bounds.at_least(batch) == self.bounds.at_most(batch)
            await self.ask_about(batch, door)

    async def announced(self) -> bool:
        """Whether all prunings are announced that were answered since Redis forgot last."""
        return self.owed <= (await self.event_ids()).keys()

    async def event_ids(self) -> dict[tuple[str, str, str], set[str]]:
        """The ids of all that is announced."""
        ids: dict[tuple[str, str, str], set[str]] = {}
        for one in values(await self.ground.platform.messages(topics.PHASE_SKIPPED)):
            data = one["data"]
            ids.setdefault((data["correlation_id"], data["batch_id"], data["phase_name"]), set()).add(one["event_id"])
        return ids


@asynccontextmanager
async def flushed(directory: Path, postgres: PostgresServer, seed: int) -> AsyncIterator[Flushed]:
    """Two replicas that run; at the end they must stop in order."""
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(prepared(directory, "flushed"))
        nodes = ground.redis.nodes(max_connections=1, deadline_seconds=10)
        stack.push_async_callback(nodes.aclose)
        # Both at once: they find an empty database.
        processes = [
            stack.enter_context(
                ground.serve(f"replica-{n}", BCS_DATABASE_URL=postgres.url, BCS_INSTANCE_NAME=n, **SETTINGS)
            )
            for n in range(REPLICAS)
        ]
        for process in processes:
            await process.answers()
        doors = [await stack.enter_async_context(Orchestrator(process.base, keep_alive=True)) for process in processes]
        # One makes the tables, and the other finds them only then.
        await wait_until(partial(all_have_the_record, doors))
        yield Flushed(ground, doors, nodes, seed)
        for process in processes:
            process.signal(signal.SIGTERM)
        for process in processes:
            assert await process.ended() == 0


async def all_have_the_record(doors: list[Orchestrator]) -> bool:
    return all([await door.metric("bcs_archive_up", store="postgresql") == 1 for door in doors])


@pytest.mark.parametrize("seed", [18])
async def test_whatever_redis_forgets_every_answer_is_the_models(
    tmp_path: Path, private_postgres: PostgresServer, note_figure: Note, seed: int
) -> None:
    async with flushed(tmp_path, private_postgres, seed) as scene:
        began = time.monotonic()

        async def durable() -> bool:
            await scene.look()
            return not scene.bounds.under_way

        async with anyio.create_task_group() as background:
            background.start_soon(scene.flush)
            scene.asked = SIZES.flushed_events  # nobody asks yet: until a batch is registered, little is all
            await scene.tell(roster(scene.batches))
            await wait_until(durable, 60)
            scene.asked = 0
            background.start_soon(scene.watch)
            async with anyio.create_task_group() as group:
                for worker in range(CALLERS):
                    group.start_soon(scene.ask, worker)
                async with anyio.create_task_group() as telling:
                    for worker in range(CALLERS):
                        telling.start_soon(scene.report, worker)
                    telling.start_soon(scene.tell, completions(scene.batches, scene.chance))
                scene.told = True
            scene.done = True
        await wait_until(durable, 60)
        asked, flushes, seconds = scene.asked, scene.flushes, list(scene.seconds)
        assert flushes >= LEAST_FLUSHES, "Redis forgot often, and under load"
        assert scene.reported == len(scene.batches)
        assert scene.pruned >= len(scene.batches), "enough was complete while it forgot"
        await scene.assert_exact()
        await scene.forget()
        await scene.assert_exact()
        assert len(scene.owed) >= len(scene.batches), "since it forgot last, everybody asked about every batch"
        await wait_until(scene.announced, 60)
        for door in scene.doors:
            samples = await door.samples()
            restarts = [labels for name, labels, value in samples if "restarts_total" in name and value]
            assert restarts == []
            assert await door.metric("bcs_archive_entries_queued_total") == 0, "else facts were forgotten, rightly"
        assert {len(copies) for copies in (await scene.event_ids()).values()} == {1}
        note_figure(
            18,
            f"seed {seed}: {flushes} times FLUSHALL under {asked} resolutions, {scene.reported} reports and "
            f"{len(scene.batches) * EVENTS_OF_A_BATCH} events at {REPLICAS} replicas: every answer within the model's "
            f"bounds (p50 {percentile(seconds, 50) * 1000:.0f} ms, p99 {percentile(seconds, 99) * 1000:.0f} ms), and "
            f"all equal to it in the end, also after one more; {len(scene.owed)} prunings announced since; "
            f"{time.monotonic() - began:.0f} s",
        )
