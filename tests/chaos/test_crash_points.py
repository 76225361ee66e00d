"""Row 4: a crash at every named point, of the code there, of an actor, of the process, and all is well afterwards."""

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from signal import SIGKILL

import aiohttp
import anyio
import pytest

from bcs.devtools.servers import embedded
from bcs.domain.state import BatchState
from bcs.observability.failpoints import FailPoint
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.wire import topics
from tests.chaos.crashing_process import Crasher, CrashingProcess, How, Order
from tests.chaos.figures import Note
from tests.chaos.history import told
from tests.chaos.redis_servers import connections_to
from tests.chaos.servers import killed_at_the_end
from tests.chaos.sizes import SIZES
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, create_platform_topics, uuids, values
from tests.support.laws import LAW
from tests.support.ports import held_port
from tests.support.service import DEFINE, QUICK, Orchestrator, running_service
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

# aiokafka leaves the connection that it is cut off on, while it connects, to the garbage collector.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning")]

SEED = 4
A_BATCH = "a batch's"
WHOSE = {
    "starting": ["metrics", "publisher", "archive", "intake", "http", A_BATCH],
    "intake": ["intake"],
    "publisher": ["publisher"],
    "http": ["http"],
    "archive": ["archive"],
    "batch": [A_BATCH],
    "store": [A_BATCH],
}
PLACES = [(point, actor) for point in FailPoint for actor in WHOSE[point.partition(".")[0]]]
# A process takes seconds to start, and to get the partitions of its predecessor: a few at each point, or one at all.
DEATHS = PLACES * SIZES.deaths_at_each_point or [(FailPoint.BEFORE_EXEC, A_BATCH)]
# Scenes at a time: most of the time goes by with waiting for the broker, which makes all that join wait for a second.
LANES, LANES_OF_PROCESSES = (6, min(6, len(DEATHS))) if IN_FULL else (4, 1)
SETTINGS = {
    **QUICK,
    "chaos_enabled": True,
    "restart_max": 1_000_000,
    "batch_restart_max": 1_000_000,
    "restart_backoff_initial_seconds": 0.01,
    "restart_backoff_maximum_seconds": 0.05,
    "kafka_session_timeout_seconds": 1.0,
    "kafka_heartbeat_interval_seconds": 0.2,
    "intake_commit_interval_seconds": 0.02,
    "outbox_takeover_seconds": 0.5,
}


@dataclass
class Scene:
    """A service with its servers, what brings it to a certain point, and what must have come of it.

    :param name: of the group, of the keys, and of the batches.
    :param orders: the file that says where to crash.
    """

    name: str
    platform: Platform
    store: RedisStateStore
    record: PostgresArchive
    settings: dict[str, object]
    orders: Path
    base: str = ""
    model: dict[str, BatchState] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    @property
    def done(self) -> str:
        """A batch whose spellcheck is complete: each answer prunes and announces it."""
        return f"{self.name}-done"

    async def begin(self, base: str) -> None:
        """The service has started: get to where requests prune."""
        self.base = base
        # Several services that find an empty database wait for each other.
        await wait_until(self.has_archive)
        await self.platform.send(spellchecked(self.done, "essay"))
        await self.back_in_order()

    async def has_archive(self) -> bool:
        """True once the service has its archive."""
        async with Orchestrator(self.base) as orchestrator:
            return await orchestrator.metric("bcs_archive_up", store="postgresql") == 1

    def order(self, point: FailPoint, actor: str, how: How, chance: Random, batch: str) -> Order:
        """One crash there, or two where that makes no difference to what must come of it."""
        if actor != A_BATCH:
            return Order(point, self.done if point is FailPoint.HTTP_BEFORE_REPLY else actor, how, actor)
        # A third crash over one message would rightly make a dead letter of it.
        times = chance.choice([1, 2]) if how is How.RAISE else 1
        return Order(point, batch, how, chance.choice([f"batches/{batch}", "batches"]), times)

    async def lead_to(self, order: Order, batch: str) -> int | None:
        """Give the order, and lead the service there; returns what the one that asked meanwhile was answered."""
        order.give(self.orders)
        if order.point is FailPoint.STARTING and order.subject != batch:
            # Whoever is to crash at its start has to start again first.
            assert await self._call(f"/internal/v1/actors/{order.subject}/kill") == 202
        events = [told(event) for event in (registered(batch, ["a", "b"]), *(spellchecked(batch, one) for one in "ab"))]
        for one in events:
            self.model.setdefault(batch, BatchState()).merge(one.delta)
        await self.platform.send(*(one.event for one in events))
        return await self.prune(batch)

    async def prune(self, request: str) -> int | None:
        """Ask for what prunes."""
        self.asked.add(request)
        body = {"batch_id": self.done, "requested_pipeline": "ai_feedback", "correlation_id": request}
        return await self._call(DEFINE, json=body)

    async def _call(self, path: str, **options: object) -> int | None:
        """The answer's status; None where the connection ended without one."""
        try:
            async with Orchestrator(self.base) as orchestrator:
                return (await orchestrator.request("POST", path, **options)).status
        except aiohttp.ClientConnectionError:
            return None

    async def back_in_order(self) -> None:
        """Wait until the order was carried out, all actors run, and everything sent is committed."""

        async def in_order() -> bool:
            async with Orchestrator(self.base) as orchestrator:
                tree = (await orchestrator.get("/internal/v1/actors")).json
            running = all(child["state"] == "running" for child in tree["children"])
            return running and await self.platform.caught_up(self.name)

        await wait_until(lambda: not self.orders.exists(), description="it crashed there")
        await wait_until(in_order, 60, ignoring=(aiohttp.ClientConnectionError,))

    async def assert_converged(self) -> None:
        """All events are in store and record; all prunings are announced, each under one event id; none is poisoned."""
        await self.record.probe(10)
        for batch, state in self.model.items():
            assert await self.store.state(batch) == await self.record.state(batch) == state
            assert len(await self.record.history(batch, limit=9)) == 3, "each event once"
        ids: dict[str, set[str]] = {}

        async def announced() -> bool:
            for record in values(await self.platform.messages(topics.PHASE_SKIPPED, self.done)):
                ids.setdefault(record["data"]["correlation_id"], set()).add(record["event_id"])
            return uuids(self.asked) <= ids.keys()

        await wait_until(announced)
        assert ids.keys() <= uuids(self.asked)
        assert {len(copies) for copies in ids.values()} == {1}, "all copies carry the same event id"
        for topic in topics.CONSUMED:
            assert await self.platform.messages(topics.dead_letter_topic(topic)) == []


@asynccontextmanager
async def staged(directory: Path, name: str, redis_url: str, database_url: str) -> AsyncIterator[Scene]:
    """A scene without a service yet, with a broker of its own."""
    nodes = connections_to(redis_url)
    record = PostgresArchive(ArchiveGateway(database_url, max_connections=1, deadline_seconds=10), page_bytes=2**20)
    store = RedisStateStore(nodes, law=LAW, key_prefix=f"{name}:", ttl_seconds=1000)
    with killed_at_the_end(embedded.kafka(directory)) as server:
        await create_platform_topics(server.address)
        names = {"kafka_bootstrap_servers": server.address, "kafka_consumer_group_id": name}
        names |= {"redis_url": redis_url, "redis_key_prefix": f"{name}:", "database_url": database_url}
        settings: dict[str, object] = {**SETTINGS, **names}
        async with Platform(server.address) as platform:
            yield Scene(name, platform, store, record, settings, server.directory / "orders")
    await nodes.aclose()
    await record.aclose()


async def in_lanes(lanes: int, play: Callable[[int], Coroutine[None, None, None]]) -> None:
    async with anyio.create_task_group() as group:
        for lane in range(lanes):
            group.start_soon(play, lane)


async def test_after_a_crash_at_any_point_all_is_well(
    tmp_path: Path, redis_url: str, database_url: str, unique_name: Callable[[str], str], note_figure: Note
) -> None:
    places = iter(sorted(PLACES, key=lambda place: place[1] != "intake"))  # those take longest
    crashes: dict[How, list[float]] = {How.RAISE: [], How.KILL: []}

    async def play(lane: int) -> None:
        async with staged(tmp_path / str(lane), unique_name("crash"), redis_url, database_url) as scene:
            crasher = Crasher(scene.orders)
            async with running_service(crasher.reach, **scene.settings) as service:
                await crasher.meet(service.service, lambda: False)
                await scene.begin(service.base)
                for point, actor in places:
                    await crash_at(scene, point, actor)
                await scene.assert_converged()

    async def crash_at(scene: Scene, point: FailPoint, actor: str) -> None:
        chance = Random(f"{SEED} {point} {actor}")
        # Where each place has one crash, every other one is a kill.
        ways = islice(cycle(crashes), PLACES.index((point, actor)) % 2, None)
        for number, how in enumerate(islice(ways, SIZES.crashes_at_each_point)):
            batch = f"{scene.name}-{point}-{actor}-{number}"
            order = scene.order(point, actor, how, chance, batch)
            began = time.monotonic()
            try:
                status = await scene.lead_to(order, batch)
                fault_in_a_request = (point, how) == (FailPoint.HTTP_BEFORE_REPLY, How.RAISE)
                allowed = (500,) if fault_in_a_request else (200, None) if actor == "http" else (200,)
                assert status in allowed, "no other actor's crash is noticed"
                if status != 200:
                    assert await scene.prune(batch) == 200, "who got no answer asks the same again"
                await scene.back_in_order()
            except Exception as failure:
                failure.add_note(f"crash {number} there: {order}")
                raise
            crashes[how].append(time.monotonic() - began)

    await in_lanes(LANES, play)
    assert sum(map(len, crashes.values())) == len(PLACES) * SIZES.crashes_at_each_point
    assert min(map(len, crashes.values())) >= len(PLACES) * SIZES.crashes_at_each_point // 2, "both kinds of crashes"
    figures = [f"{len(took)} {how} (in order after {max(took):.1f} s at most)" for how, took in crashes.items()]
    note_figure(4, f"crashes at {len(PLACES)} places: {', '.join(figures)}")


async def test_after_the_death_of_the_process_at_any_point_all_is_well(
    tmp_path: Path, redis_url: str, database_url: str, unique_name: Callable[[str], str], note_figure: Note
) -> None:
    deaths, launches, took = iter(enumerate(DEATHS)), count(), list[float]()

    async def play(lane: int) -> None:
        async with staged(tmp_path / str(lane), unique_name("death"), redis_url, database_url) as scene:
            process = await launch(scene)
            try:
                await scene.begin(process.base)
                for number, (point, actor) in deaths:
                    batch = f"{scene.name}-{point}-{actor}-{number}"
                    order = scene.order(point, actor, How.DIE, Random(SEED), batch)
                    began = time.monotonic()
                    # In the middle of its death it may have no time for a request; that it says so is in order.
                    assert await scene.lead_to(order, batch) in (200, 503, None)
                    assert await process.ended() == -SIGKILL, order
                    process = await launch(scene)
                    scene.base = process.base
                    # On a machine that has much to do it may answer before it has found PostgreSQL: 503, and ask again.
                    await wait_until(partial(is_pruned, scene, batch))
                    await scene.back_in_order()
                    took.append(time.monotonic() - began)
                await scene.assert_converged()
            finally:
                process.__exit__()

    async def launch(scene: Scene) -> CrashingProcess:
        environment = {f"BCS_{name.upper()}": value for name, value in scene.settings.items()}
        environment["BCS_HTTP_PORT"] = held_port()
        process = CrashingProcess(tmp_path / f"launch-{next(launches)}", scene.orders, **environment)
        try:
            await process.answers()
        except BaseException:  # also where another lane has failed meanwhile
            process.__exit__()
            raise
        return process

    await in_lanes(LANES_OF_PROCESSES, play)
    note_figure(4, f"kill -9 at {len(set(DEATHS))} places: {len(took)} (in order after {max(took):.1f} s at most)")


async def is_pruned(scene: Scene, batch: str) -> bool:
    status = await scene.prune(batch)
    assert status in (200, 503)
    return status == 200
