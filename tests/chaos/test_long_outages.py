"""Row 10: Redis, or Kafka, is away for a minute under load. Nobody crashes, nobody waits, nothing is lost; once it is
back all is well within seconds, without help.

Two services at a time, one for each outage.
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

from bcs.contracts import topics
from tests.chaos.figures import Note, percentile
from tests.chaos.load import Asked, assert_kept
from tests.chaos.scene import DEADLINE_SECONDS, EVENTS_A_SECOND, Scene, prepared_scene
from tests.chaos.sizes import SIZES
from tests.support.events import spellchecked
from tests.support.kafka import values
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BEFORE_SECONDS = 1.0
BACK_TO_NORMAL_SECONDS = 5.0
CUTS = SIZES.cuts
AROUND = 30
SLOWER_SECONDS = 0.25


class Outage(Protocol):
    """One thing that goes away and comes back.

    :param name: of it, as health has it.
    """

    name: str

    def away(self, scene: Scene) -> AbstractAsyncContextManager[None]:
        """It is away in here."""

    async def overcome(self, scene: Scene) -> bool:
        """Whether the service is as it was before."""


class NoRedis:
    """Killed, and started again with what it had acknowledged."""

    name = "redis"

    @asynccontextmanager
    async def away(self, scene: Scene) -> AsyncIterator[None]:
        """See `Outage.away`."""
        scene.ground.valkey.kill()
        yield
        scene.ground.valkey.restart()
        self._new = f"{scene.ground.name}-new"
        await scene.ground.platform.send(spellchecked(self._new, "essay"))

    async def overcome(self, scene: Scene) -> bool:
        """See `Outage.overcome`."""
        answers = await scene.bos.get("/readyz"), await scene.bos.define(scene.callers.undone)
        return {answer.status for answer in answers} == {200} and await scene.knows(self._new)


class NoKafka:
    """Cut off, since the embedded one forgets everything when it is killed."""

    name = "kafka"

    @asynccontextmanager
    async def away(self, scene: Scene) -> AsyncIterator[None]:
        """See `Outage.away`."""
        async with scene.telling:  # who tells them would be cut off too
            scene.ground.line.refuse()
            await scene.ground.line.cut()
            yield
            self._owed = set(scene.load.tally.pruned)
            scene.ground.line.accept()
            self._new = f"{scene.ground.name}-new"
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
    kept: str = ""

    def figures(self) -> str:
        """In numbers."""
        statuses = dict(Counter(one.outcome for one in self.during))
        return (
            f"{len(self.during)} requests meanwhile, answered {statuses} within {seconds_of(self.during, 100):.2f} s; "
            f"all as before {self.seconds:.1f} s after its return; {self.kept}; 0 restarts; "
            f"{'/'.join(map(str, self.megabytes))} MB of memory before, at the end, after"
        )


def seconds_of(asked: list[Asked], percent: float) -> float:
    return percentile([one.seconds for one in asked], percent)


async def endure(directory: Path, outage: Outage, measured: Measured) -> None:
    events = int((SIZES.outage_seconds + 2 * BEFORE_SECONDS) * EVENTS_A_SECOND)
    async with prepared_scene(directory, f"no-{outage.name}", events) as scene, anyio.create_task_group() as callers:
        callers.start_soon(scene.ask)
        async with anyio.create_task_group() as telling:
            telling.start_soon(scene.tell)
            began = time.monotonic()
            await anyio.sleep(BEFORE_SECONDS)
            measured.megabytes.append(scene.megabytes())
            left = time.monotonic()
            async with outage.away(scene):
                await anyio.sleep(SIZES.outage_seconds)
                await assert_seen(scene, outage)
                measured.megabytes.append(scene.megabytes())
                back = time.monotonic()
            await wait_until(lambda: outage.overcome(scene), 30)
            overcome = time.monotonic()
        await wait_until(
            lambda: any(one.began > overcome for one in scene.asked), description="someone asks afterwards"
        )
        scene.load.enough = True
        tally = scene.load.tally
        announcements = await assert_kept(tally, scene.callers, scene.history, scene.ground)
        await scene.assert_no_restart()
        assert tally.outcomes.keys() <= {"200", "503"}, tally.outcomes
        assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS, "also at either edge of the outage"
        assert {one.outcome for one in scene.asked if one.began > overcome} == {"200"}
        measured.before, measured.during = scene.between(began, left), scene.between(left, back)
        measured.seconds = overcome - back
        measured.megabytes.append(scene.megabytes())
        told, recorded = len(scene.history.told), len(tally.recorded)
        measured.kept = f"{told} events and {recorded} reports kept, {announcements} announcements"


async def assert_seen(scene: Scene, outage: Outage) -> None:
    """The outage is told of, and liveness given all the same."""
    health = await scene.bos.get("/healthz")
    assert health.status == 200
    unhealthy = {name for name, found in health.json["dependencies"].items() if found["status"] == "unhealthy"}
    assert unhealthy == {outage.name}
    assert (await scene.bos.get("/readyz")).status == (503 if outage.name == "redis" else 200)


async def test_a_long_outage_is_waited_for_and_overcome_without_help(tmp_path: Path, note_figure: Note) -> None:
    no_redis, no_kafka = Measured(), Measured()
    async with anyio.create_task_group() as group:
        group.start_soon(endure, tmp_path / "redis", NoRedis(), no_redis)
        group.start_soon(endure, tmp_path / "kafka", NoKafka(), no_kafka)
    note_figure(10, f"Redis away for {SIZES.outage_seconds:.0f} s: {no_redis.figures()}")
    note_figure(10, f"Kafka away for {SIZES.outage_seconds:.0f} s: {no_kafka.figures()}")
    assert {one.outcome for one in no_redis.during} == {"503"}, "never a guess"
    assert seconds_of(no_redis.during, 100) < DEADLINE_SECONDS
    assert {one.outcome for one in no_kafka.during} == {"200"}
    assert seconds_of(no_kafka.during, 90) < seconds_of(no_kafka.before, 90) + SLOWER_SECONDS, "nothing waits for Kafka"
    assert max(no_redis.seconds, no_kafka.seconds) < BACK_TO_NORMAL_SECONDS


@pytest.mark.parametrize("seed", [10])
async def test_kafka_may_cut_its_connections_at_any_moment(tmp_path: Path, note_figure: Note, seed: int) -> None:
    chance, seconds = Random(seed), list[float]()
    async with prepared_scene(tmp_path, "cuts", 0) as scene, anyio.create_task_group() as callers:
        callers.start_soon(scene.ask)
        for number in range(CUTS):
            # While they are read and committed, there is something to be said on every connection.
            await scene.ground.platform.send(*(spellchecked("during", f"{number}-{one}") for one in range(AROUND)))
            await anyio.sleep(chance.uniform(0, 0.2))
            await scene.ground.line.cut()
            began = time.monotonic()
            after = f"after-{number}"
            await scene.ground.platform.send(spellchecked(after, "essay"))
            await wait_until(partial(scene.knows, after), 10, description=f"it reads on after cut {number}")
            seconds.append(time.monotonic() - began)
        scene.load.enough = True
        await scene.assert_no_restart()
        assert scene.load.tally.outcomes.keys() == {"200"}
        await assert_kept(scene.load.tally, scene.callers, scene.history, scene.ground)
        told = (await scene.ground.store.state("during")).essay_marks["spellcheck"]
        assert len(told) == CUTS * AROUND
    note_figure(
        10,
        f"seed {seed}: connections to Kafka cut {CUTS} times: 0 restarts, the next event applied after p50 "
        f"{percentile(seconds, 50):.2f} s, max {max(seconds):.2f} s",
    )


class LostWriter:
    """Writes as uvloop does between the loss of a connection and the moment when aiokafka is told."""

    def write(self, _: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def close(self) -> None:
        pass


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
