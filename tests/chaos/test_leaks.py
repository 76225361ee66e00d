"""Row 14: after many restarts of every actor nothing is left of those that died."""

import asyncio
import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial, reduce
from operator import or_
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.session import PollSession
from bcs.observability.failpoints import FailPoint
from bcs.supervision import ActorContext, Mailbox, State
from tests.chaos.figures import Note
from tests.chaos.sizes import SIZES
from tests.support.events import spellchecked
from tests.support.kafka import Platform, platform_broker
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.release,
    # A client that is cut off while it connects leaves that connection to the garbage collector, which says so, and
    # closes it. As an error, the warning would keep it from that; and what is left over is counted here anyway.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SEED = 14
LOOKS = 5
LISTENING = "0A"
BATCHES = [f"batch-{number}" for number in range(5)]
# An intake takes a second to join its group again, so it gets fewer restarts than the others.
INTAKE = SIZES.counted_restarts // 16
OTHERS = ["metrics", "publisher", "batches", "http"]
OTHER = -(-(SIZES.counted_restarts - INTAKE) // (len(OTHERS) + 1))
# What comes and goes, plus three times what was measured for each restart (1,000: 1.9 MiB more).
GROWN_BLOCKS = 2_500 + 20 * SIZES.counted_restarts
GROWN_MEGABYTES = 3.0 + SIZES.counted_restarts / 300
REDIS_CONNECTIONS = 4
OBJECTS = (
    MemoryObjectSendStream,
    MemoryObjectReceiveStream,
    Mailbox,
    ActorContext,
    PollSession,
    OffsetTracker,
    AIOKafkaConsumer,
    AIOKafkaProducer,
    AIOKafkaConnection,
    web.AppRunner,
)
SETTINGS: dict[str, object] = {
    "restart_max": 1_000_000,
    "batch_restart_max": 1_000_000,
    "restart_backoff_initial_seconds": 0.01,
    "restart_backoff_maximum_seconds": 0.02,
    "kafka_session_timeout_seconds": 1.0,
    "kafka_heartbeat_interval_seconds": 0.2,
    "intake_commit_interval_seconds": 0.02,
    "redis_max_connections": REDIS_CONNECTIONS,
}


@pytest.fixture
def kafka_bootstrap_servers(tmp_path: Path) -> Iterator[str]:
    with platform_broker(tmp_path / "kafka") as address:
        yield address


class Drill:
    """Light traffic, and kills of every kind of actor in the middle of it, some as soon as they have started again."""

    def __init__(self, kafka: str) -> None:
        self.service: RunningService | None = None
        self._kafka = kafka
        self._chance = Random(SEED)
        self._batch_kills_left = 0
        self._committed = self._answered = 0
        self._enough = False

    async def reach(self, point: FailPoint, subject: str) -> None:
        """Kill the actor of a batch at its work, now and then; see `bcs.observability.failpoints.FailPointHook`."""
        if self.service is None or point is not FailPoint.BATCH_RECEIVED or not self._batch_kills_left:
            return
        if self._chance.random() < 0.5 and self.service.service.root.kill(f"batches/{subject}"):
            self._batch_kills_left -= 1

    async def play(self, service: RunningService, intake: int, others: int) -> None:
        """So many kills, and then peace."""
        self.service, self._enough, self._batch_kills_left = service, False, others
        before = restarts(service)
        async with Platform(self._kafka) as platform:
            async with anyio.create_task_group() as traffic:
                traffic.start_soon(self._publish, service, platform)
                traffic.start_soon(self._ask, service)
                async with anyio.create_task_group() as killing:
                    killing.start_soon(self._kill, service, "intake", intake)
                    for actor in OTHERS:
                        killing.start_soon(self._kill, service, actor, others)
                await wait_until(lambda: not self._batch_kills_left, 60)
                self._enough = True
            await wait_until(lambda: platform.caught_up(service.group), 60)
        assert restarts(service) - before == Counter({"intake": intake, **dict.fromkeys(OTHERS, others)})

    async def _kill(self, service: RunningService, actor: str, times: int) -> None:
        for _ in range(times):
            before = restarts(service)[actor]
            assert service.call(service.service.root.kill, actor)
            await wait_until(partial(is_back, service, actor, before), 60)
            if self._chance.random() < 0.5:
                await wait_until(partial(self._has_done_more, actor, self._done(actor)), 60)

    def _has_done_more(self, actor: str, before: int) -> bool:
        return self._done(actor) > before

    def _done(self, actor: str) -> int:
        return self._committed if actor == "intake" else self._answered

    async def _publish(self, service: RunningService, platform: Platform) -> None:
        while not self._enough:
            essay = f"essay-{self._committed % 10}"
            await platform.send(*(spellchecked(batch, essay) for batch in BATCHES))
            await wait_until(lambda: platform.caught_up(service.group), 60)
            self._committed += 1

    async def _ask(self, service: RunningService) -> None:
        while not self._enough:
            async with Orchestrator(service.base) as orchestrator:
                with suppress(aiohttp.ClientConnectionError):
                    assert (await orchestrator.complete("reported", "spellcheck")).status in (200, 503)
                    assert (await orchestrator.define("reported")).status == 200
                    assert (
                        (await orchestrator.get("/metrics")).status
                        == (await orchestrator.get("/healthz")).status
                        == 200
                    )
            self._answered += 1


def restarts(service: RunningService) -> Counter[str]:
    return Counter({child.name: child.restarts for child in service.snapshot().children})


def is_back(service: RunningService, actor: str, before: int) -> bool:
    [child] = [child for child in service.snapshot().children if child.name == actor]
    return child.restarts == before + 1 and child.state is State.RUNNING


def collect_garbage(caplog: pytest.LogCaptureFixture) -> None:
    """Free all that nobody needs any more, pytest's own copy of the log included.

    It keeps errors with their tracebacks, so with connections of aiokafka, and a busy machine has many errors.
    """
    caplog.clear()
    gc.collect()


def holdings(service: RunningService, ports: dict[int | None, str], caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """What the service has at present, and what there is of each kind of object."""
    collect_garbage(caplog)
    objects = gc.get_objects()
    alive = Counter(kind for one in objects for kind in type(one).__mro__)  # a queue's streams are of its own classes
    held = Counter({kind.__name__: alive[kind] for kind in OBJECTS})
    held["tasks"] = service.call(lambda: len(asyncio.all_tasks()))
    held["envelopes"] = sum(child.mailbox_depth for child in service.snapshot().children)
    held["messages under way"] = sum(one.messages for one in objects if type(one) is InFlight)
    held["offsets remembered"] = sum(one.remembered for one in objects if type(one) is OffsetTracker)
    held += connections(ports)
    # Whether the pool opens all of the connections that it may is up to chance; that it opens no more is not.
    assert held["connections to Redis"] <= REDIS_CONNECTIONS + 1, "one is for probes"
    held["other file descriptors"] = len(list(Path("/proc/self/fd").iterdir())) - held.pop("connections to Redis", 0)
    return held


def connections(ports: dict[int | None, str]) -> Counter[str]:
    """This process's connections with each of some ports at one of their ends."""
    mine = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            mine.add(str(descriptor.readlink()))
    found: Counter[str] = Counter()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_, inode = line.split()[:10]
        if f"socket:[{inode}]" in mine and state != LISTENING:
            ends = {int(end.partition(":")[2], 16) for end in (local, remote)}
            found.update(f"connections to {ports[port]}" for port in ends & ports.keys())
    return found


def allocated_blocks(caplog: pytest.LogCaptureFixture) -> int:
    """How many objects, and parts of objects, Python holds, once all garbage is gone."""
    collect_garbage(caplog)
    return sys.getallocatedblocks()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_nothing_is_left_of_actors_that_died(
    redis_url: str, kafka_bootstrap_servers: str, note_figure: Note, caplog: pytest.LogCaptureFixture
) -> None:
    drill = Drill(kafka_bootstrap_servers)
    servers = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    async with running_service(drill.reach, **servers, **SETTINGS) as service:
        ends = {"Redis": redis_url, "Kafka": f"//{kafka_bootstrap_servers}", "HTTP": service.base}
        ports = {urlsplit(url).port: name for name, url in ends.items()}
        await drill.play(service, intake=1, others=2)
        # A fetch, and the task for it, come and go: the most of some looks before, the least of some looks afterwards.
        before = reduce(or_, [holdings(service, ports, caplog) for _ in range(LOOKS)])
        resident, blocks = resident_bytes(), allocated_blocks(caplog)
        await drill.play(service, INTAKE, OTHER)
        after = holdings(service, ports, caplog)

        def nothing_left() -> bool:
            nonlocal after
            after &= holdings(service, ports, caplog)
            return not after - before

        with suppress(AssertionError):
            await wait_until(nothing_left, 20)
        assert after - before == Counter(), f"left over, besides {before}"
        grown = (resident_bytes() - resident) / 2**20
        more_blocks = allocated_blocks(caplog) - blocks
        assert more_blocks <= GROWN_BLOCKS
        assert grown <= GROWN_MEGABYTES
    each = f"{INTAKE} of intake, {OTHER} each of {', '.join(OTHERS)}, and a batch's"
    note_figure(14, f"{INTAKE + OTHER * (len(OTHERS) + 1)} restarts: {each}; seed {SEED}")
    note_figure(14, f"no more than before: {dict(before)}, and at most {REDIS_CONNECTIONS + 1} connections to Redis")
    note_figure(14, f"the process of the test holds {more_blocks} more blocks and {grown:.1f} MiB more of memory")
