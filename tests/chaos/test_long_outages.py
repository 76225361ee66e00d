"""Row 10: Redis, then Kafka, is away for a minute under load. Nobody crashes, nobody waits, nothing is lost; once it is
back all is well within seconds, without help. Then Kafka cuts its connections, again and again.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import anyio
import pytest
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.topology import slot_of
from bcs.wire import topics
from tests.chaos.figures import Note, percentile
from tests.chaos.load import Asked, assert_kept
from tests.chaos.redis_servers import ON_A_CLUSTER
from tests.chaos.scene import DEADLINE_SECONDS, EVENTS_A_SECOND, Scene, prepared_scene
from tests.chaos.sizes import SIZES
from tests.support.events import spellchecked
from tests.support.kafka import uuids, values
from tests.support.redis_cluster import ClusterNode, RedisCluster, name_in
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BEFORE_SECONDS = 0.5
SEEN_SECONDS = 5.0
LEAST_ASKED = 10
BACK_TO_NORMAL_SECONDS = 5.0
AROUND = 30
SLOWER_SECONDS = 0.25
# What is on its way when Redis goes is told at once that its connection is lost.
PROMPT_SECONDS = 1.0


class Outage(Protocol):
    """One thing that goes away and comes back.

    :param name: of it, as health has it.
    :param status: what health calls it meanwhile.
    :param back_at: when it was back.
    """

    name: str
    status: str
    back_at: float

    def away(self, scene: Scene) -> AbstractAsyncContextManager[None]:
        """It is away in here."""

    async def overcome(self, scene: Scene) -> bool:
        """Whether the service is as it was before."""


class NoRedis:
    """Killed, and started again with what it had acknowledged."""

    name = "redis"
    status = "unhealthy"

    @asynccontextmanager
    async def away(self, scene: Scene) -> AsyncIterator[None]:
        """See `Outage.away`."""
        scene.ground.redis.kill()
        try:
            yield
        finally:
            self.back_at = time.monotonic()
            await scene.ground.redis.restart()
            if ON_A_CLUSTER:
                # A node refuses everything until it has heard of the others, and some time longer.
                self.back_at = time.monotonic()
        self._new = f"{scene.ground.name}-after-{self.name}"
        await scene.ground.platform.send(spellchecked(self._new, "essay"))

    async def overcome(self, scene: Scene) -> bool:
        """See `Outage.overcome`."""
        # Of a cluster, some of these batches are on each master.
        batches = [scene.callers.undone, *(f"unknown-{number}" for number in range(12))]
        answers = [await scene.orchestrator.get("/readyz"), *[await scene.orchestrator.define(one) for one in batches]]
        return {answer.status for answer in answers} == {200} and await scene.knows(self._new)


class NoShard:
    """One master of a cluster is killed, and started again. The batches of the others have nothing to do with it."""

    name = "redis"
    status = "degraded"

    def __init__(self, cluster: RedisCluster, master: ClusterNode) -> None:
        self._cluster, self._master = cluster, master

    @asynccontextmanager
    async def away(self, scene: Scene) -> AsyncIterator[None]:
        """See `Outage.away`."""
        self.slots = await self._cluster.slots_of(self._master)
        self._master.server.kill()
        try:
            yield
        finally:
            self._master.server.restart()
            await self._cluster.wait_until_ok()
            self.back_at = time.monotonic()
        self._new = name_in(self.slots, f"{scene.ground.name}-after-a-shard")
        await scene.ground.platform.send(spellchecked(self._new, "essay"))

    async def overcome(self, scene: Scene) -> bool:
        """See `Outage.overcome`."""
        answer = await scene.orchestrator.define(name_in(self.slots, "unknown"))
        return answer.status == 200 and await scene.knows(self._new)

    def has(self, scene: Scene, asked: Asked) -> bool:
        """Whether the master has the batch of a request."""
        return slot_of(BatchKeys(f"{scene.ground.name}:", asked.batch).facts) in self.slots


class NoKafka:
    """Cut off, since the embedded one forgets everything when it is killed."""

    name = "kafka"
    status = "unhealthy"

    @asynccontextmanager
    async def away(self, scene: Scene) -> AsyncIterator[None]:
        """See `Outage.away`."""
        async with scene.telling:  # who tells them would be cut off too
            scene.ground.line.refuse()
            await scene.ground.line.cut()
            try:
                yield
            finally:
                self._owed = uuids(scene.load.tally.pruned)
                self.back_at = time.monotonic()
                scene.ground.line.accept()
            self._new = f"{scene.ground.name}-after-{self.name}"
            await scene.ground.platform.send(spellchecked(self._new, "essay"))

    async def overcome(self, scene: Scene) -> bool:
        """See `Outage.overcome`."""
        announced = values(await scene.ground.platform.messages(topics.PHASE_SKIPPED))
        self._owed -= {record["data"]["correlation_id"] for record in announced}
        return not self._owed and await scene.knows(self._new)


@dataclass
class Measured:
    """What was measured.

    :param seconds: from the return until all was as before.
    :param megabytes: of memory before the outage, at its end, and after it.
    """

    before: list[Asked] = field(default_factory=list)
    during: list[Asked] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: list[int] = field(default_factory=list)

    def figures(self) -> str:
        """In numbers."""
        statuses = dict(Counter(one.outcome for one in self.during))
        return (
            f"{len(self.during)} requests meanwhile, answered {statuses} within {seconds_of(self.during, 100):.2f} s; "
            f"all as before {self.seconds:.1f} s after its return; "
            f"{'/'.join(map(str, self.megabytes))} MB of memory before, at the end, after"
        )


def seconds_of(asked: list[Asked], percent: float) -> float:
    return percentile([one.seconds for one in asked], percent)


async def endure(scene: Scene, outage: Outage) -> Measured:
    """One outage under load: what the service answers before it, meanwhile, and afterwards."""
    measured = Measured()
    began = time.monotonic()
    # What is usual is measured for so long.
    await anyio.sleep(BEFORE_SECONDS)
    await wait_until(lambda: len(scene.between(began, time.monotonic())) >= LEAST_ASKED, description="some ask before")
    measured.megabytes.append(scene.megabytes())
    leaving = time.monotonic()
    async with outage.away(scene):
        # To take a master away begins with a question, and meanwhile it answers.
        left = time.monotonic()
        # The fault is its length.
        await anyio.sleep(SIZES.outage_seconds)
        await wait_until(lambda: is_seen(scene, outage), SEEN_SECONDS, description="the outage is told of")
        measured.megabytes.append(scene.megabytes())
        back = time.monotonic()
    await wait_until(lambda: outage.overcome(scene))
    overcome = time.monotonic()
    await wait_until(
        lambda: len([one for one in scene.asked if one.began > overcome]) >= LEAST_ASKED,
        description="some ask afterwards",
    )
    assert {one.outcome for one in scene.asked if one.began > overcome} == {"200"}
    measured.before, measured.during = scene.between(began, leaving), scene.between(left, back)
    assert min(len(measured.before), len(measured.during)) >= LEAST_ASKED
    measured.seconds = overcome - outage.back_at
    measured.megabytes.append(scene.megabytes())
    return measured


async def endure_cuts(scene: Scene, chance: Random) -> list[float]:
    """Kafka cuts its connections at any moment; how long it took each time until the next event was applied."""
    seconds = list[float]()
    for number in range(SIZES.cuts):
        # While they are read and committed, there is something to be said on every connection.
        await scene.ground.platform.send(*(spellchecked("during", f"{number}-{one}") for one in range(AROUND)))
        # The schedule itself: at any moment.
        await anyio.sleep(chance.uniform(0, 0.2))
        await scene.ground.line.cut()
        began = time.monotonic()
        after = f"after-{number}"
        await scene.ground.platform.send(spellchecked(after, "essay"))
        await wait_until(partial(scene.knows, after), 10, description=f"it reads on after cut {number}")
        seconds.append(time.monotonic() - began)
    return seconds


async def is_seen(scene: Scene, outage: Outage) -> bool:
    """Whether the outage is told of; liveness is given all the same."""
    health = await scene.orchestrator.get("/healthz")
    assert health.status == 200
    statuses = {name: found["status"] for name, found in health.json["dependencies"].items()}
    ready = (await scene.orchestrator.get("/readyz")).status
    assert {name for name, status in statuses.items() if status == "unhealthy"} <= {outage.name}
    redis_is_away = outage.name == "redis" and outage.status == "unhealthy"
    return statuses[outage.name] == outage.status and ready == (503 if redis_is_away else 200)


@pytest.mark.parametrize("seed", [10])
async def test_outages_and_cuts_are_overcome_without_help(tmp_path: Path, note_figure: Note, seed: int) -> None:
    events = int(2 * (SIZES.outage_seconds + BEFORE_SECONDS) * EVENTS_A_SECOND)
    async with prepared_scene(tmp_path, "outages", events) as scene, anyio.create_task_group() as callers:
        callers.start_soon(scene.ask)
        async with anyio.create_task_group() as telling:
            telling.start_soon(scene.tell)
            no_redis = await endure(scene, NoRedis())
            no_kafka = await endure(scene, NoKafka())
        cutting = time.monotonic()
        seconds = await endure_cuts(scene, Random(seed))
        scene.load.enough = True
        tally = scene.load.tally
        announcements = await assert_kept(tally, scene.callers, scene.history, scene.ground)
        await scene.assert_no_restart()
        assert tally.outcomes.keys() == {"200", "503"}, tally.outcomes
        assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS, "also at either edge of an outage"
        assert min(len(tally.recorded), len(tally.pruned)) >= LEAST_ASKED
        while_cut = Counter(one.outcome for one in scene.asked if one.began > cutting)
        assert while_cut.keys() == {"200"}
        assert while_cut["200"] >= SIZES.cuts
        told_while_cut = (await scene.ground.store.state("during")).essay_marks["spellcheck"]
        assert len(told_while_cut) == SIZES.cuts * AROUND
    note_figure(10, f"Redis away for {SIZES.outage_seconds:.0f} s: {no_redis.figures()}")
    note_figure(10, f"Kafka away for {SIZES.outage_seconds:.0f} s: {no_kafka.figures()}")
    told, recorded = len(scene.history.told), len(tally.recorded)
    note_figure(
        10,
        f"seed {seed}: connections to Kafka cut {SIZES.cuts} times: the next event applied after p50 "
        f"{percentile(seconds, 50):.2f} s, max {max(seconds):.2f} s",
    )
    note_figure(10, f"{told} events and {recorded} reports kept, {announcements} announcements; 0 restarts")
    assert {one.outcome for one in no_redis.during} == {"503"}, "never a guess"
    assert seconds_of(no_redis.during, 100) < PROMPT_SECONDS
    assert {one.outcome for one in no_kafka.during} == {"200"}
    assert seconds_of(no_kafka.during, 90) < seconds_of(no_kafka.before, 90) + SLOWER_SECONDS, "nothing waits for Kafka"
    assert max(no_redis.seconds, no_kafka.seconds) < BACK_TO_NORMAL_SECONDS


class LostWriter:
    """Writes as uvloop does between the loss of a connection and the moment when aiokafka is told."""

    def write(self, _: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def close(self) -> None:
        pass


async def test_a_shard_that_is_away_costs_the_batches_of_the_others_nothing(tmp_path: Path, note_figure: Note) -> None:
    events = int((SIZES.outage_seconds + BEFORE_SECONDS) * EVENTS_A_SECOND)
    async with prepared_scene(tmp_path, "shard", events) as scene, anyio.create_task_group() as callers:
        callers.start_soon(scene.ask)
        cluster = scene.ground.redis.cluster
        assert cluster is not None
        outage = NoShard(cluster, await cluster.node_of(BatchKeys("shard:", scene.callers.done).facts))
        async with anyio.create_task_group() as telling:
            telling.start_soon(scene.tell)
            measured = await endure(scene, outage)
        scene.load.enough = True
        tally = scene.load.tally
        await assert_kept(tally, scene.callers, scene.history, scene.ground)
        await scene.assert_no_restart()
        outcomes = {
            shard: Counter(one.outcome for one in measured.during if outage.has(scene, one) is shard)
            for shard in (True, False)
        }
    note_figure(
        10,
        f"one master of three away for {SIZES.outage_seconds:.0f} s: {measured.figures()}; of its batches "
        f"{dict(outcomes[True])}, of others {dict(outcomes[False])}; {len(scene.history.told)} events kept; 0 restarts",
    )
    assert outcomes[True].keys() == {"503"}, "never a guess"
    assert outcomes[False].keys() == {"200"}
    assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS
    assert measured.seconds < BACK_TO_NORMAL_SECONDS


async def test_a_connection_to_kafka_that_uvloop_has_lost_is_an_error_of_kafka(kafka_bootstrap_servers: str) -> None:
    """Any other error ends aiokafka's own tasks: a consumer without its fetcher is a member that never reads again."""
    host, port = kafka_bootstrap_servers.split(":")
    connection = await create_conn(host, int(port))
    writer, connection._writer = connection._writer, LostWriter()
    try:
        with pytest.raises(KafkaError):
            connection.send(MetadataRequest([]))
        assert not connection.connected()
    finally:
        writer.close()
        await connection.close()


if not ON_A_CLUSTER:
    del test_a_shard_that_is_away_costs_the_batches_of_the_others_nothing  # `test_on_a_cluster.py` plays it
