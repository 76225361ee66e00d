"""Each actor is killed once during traffic; no other actor notices, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from bcs.supervision import State
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.service import Answer, Orchestrator, RunningService
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ACTORS = ["metrics", "publisher", "batches", "intake", "http"]
BATCHES, WORKERS = 10, 5
ROUNDS = 4 if IN_FULL else 2  # of events and of each worker's requests, before the kill and at least as many after it


@dataclass
class Traffic:
    """Events and requests about some batches, and their results."""

    orchestrator: Orchestrator
    platform: Platform
    batches: list[str]
    done: list[str]  # batches whose spellcheck is complete before any request: each answer prunes and announces it
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    resets: int = 0
    pruned: list[tuple[str, str]] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    enough: bool = False
    essays: int = 0  # sent for each batch

    async def publish(self) -> None:
        """One more essay of each batch after another, until it is enough."""
        while not self.enough:
            await self.platform.send(*(spellchecked(batch, f"essay-{self.essays}") for batch in self.batches))
            self.essays += 1

    async def ask(self, worker: int) -> None:
        """Requests of one kind after another, each on a connection of its own, until it is enough."""
        asked = 0
        while not self.enough:
            batch, correlation_id = self.done[asked % len(self.done)], f"worker-{worker}-{asked}"
            asked += 1
            answer = await self._request("define", self.orchestrator.define(batch, correlation_id=correlation_id))
            if answer and answer.status == 200:
                assert answer.json["pruned_phases"] == ["spellcheck"]
                self.pruned.append((batch, correlation_id))
            reported = f"{batch}-reported-{worker}-{asked}"
            answer = await self._request("complete", self.orchestrator.complete(reported, "spellcheck"))
            if answer and answer.status == 200:
                self.recorded.add(reported)
            for probe in ("/healthz", "/metrics"):
                await self._request(probe, self.orchestrator.get(probe))

    async def _request(self, kind: str, request: Awaitable[Answer]) -> Answer | None:
        try:
            answer = await request
        except aiohttp.ClientConnectorError:
            raise  # the listening socket outlives every actor: no connection is ever refused
        except aiohttp.ClientConnectionError:
            self.resets += 1
            return None
        self.statuses[kind, answer.status] += 1
        return answer


def all_running(service: RunningService) -> bool:
    return all(child.state is State.RUNNING for child in service.snapshot().children)


async def traffic_with(
    service: RunningService, platform: Platform, name: str, disturb: Callable[[Traffic], Awaitable[None]]
) -> Traffic:
    """Run traffic, disturb the service in the middle of it, and wait until everything has settled."""
    batches = [f"{name}-{number}" for number in range(BATCHES)]
    done = [f"{name}-done-{number}" for number in range(5)]
    async with Orchestrator(service.base) as orchestrator:
        await platform.send(*(spellchecked(batch, "essay") for batch in done))
        await wait_until(lambda: platform.caught_up(service.group))
        traffic = Traffic(orchestrator, platform, batches, done)
        async with asyncio.TaskGroup() as group:
            group.create_task(traffic.publish())
            for worker in range(WORKERS):
                group.create_task(traffic.ask(worker))
            await flowing(traffic)
            await disturb(traffic)
            await wait_until(lambda: all_running(service))
            await flowing(traffic)
            traffic.enough = True
        # Registered only now, each batch is complete only if none of its essays' events was lost.
        essays = [f"essay-{number}" for number in range(traffic.essays)]
        await platform.send(*(registered(batch, essays) for batch in batches))
        await wait_until(lambda: platform.caught_up(service.group), description="all events are committed")
        for batch in (*batches, *traffic.recorded):
            assert await orchestrator.to_run(batch) == ["ai_feedback"], f"nothing about {batch} is lost"
    # Before the kill and after it, or nothing would be shown by what is not lost.
    assert len(set(traffic.pruned)) == len(traffic.pruned) >= 2 * ROUNDS * WORKERS
    # Each worker asks one after another: a kill costs it at most the request that it has in hand.
    assert sum(count for (_, status), count in traffic.statuses.items() if status != 200) + traffic.resets <= WORKERS
    least = min(traffic.statuses[kind, 200] for kind in ("define", "complete", "/healthz", "/metrics"))
    assert least >= 2 * (ROUNDS - 1) * WORKERS
    assert len(traffic.recorded) == traffic.statuses["complete", 200]
    return traffic


async def flowing(traffic: Traffic) -> None:
    """Wait until events and requests have gone on for a while."""
    essays, pruned = traffic.essays + ROUNDS, len(traffic.pruned) + ROUNDS * WORKERS
    await wait_until(lambda: traffic.essays >= essays and len(traffic.pruned) >= pruned)


async def kill_batches_at_work(service: RunningService, batches: list[str]) -> int:
    """Kill actors of these batches until one dies with unacked envelopes: a commit that is under way ends first.

    Runs on the service's event loop.

    :returns: how many of them have to start again.
    """
    with anyio.fail_after(30):
        while True:
            children = [child for child in service.service.batches.snapshot().children if child.name in batches]
            if restarting := [child for child in children if child.state is State.BACKING_OFF]:
                return len(restarting)
            for child in children:
                if child.mailbox_depth:
                    service.service.root.kill(f"batches/{child.name}")
            await anyio.lowlevel.checkpoint()


async def assert_all_announced(traffic: Traffic) -> None:
    wanted = {(batch, as_uuid(request)) for batch, request in traffic.pruned}

    async def announced() -> bool:
        records = values(await traffic.platform.messages(topics.PHASE_SKIPPED))
        return wanted <= {(record["data"]["batch_id"], record["data"]["correlation_id"]) for record in records}

    await wait_until(announced, description="every pruning that a caller was told of is announced")
    ids: dict[tuple[str, str], set[str]] = {}
    for record in values(await traffic.platform.messages(topics.PHASE_SKIPPED)):
        ids.setdefault((record["data"]["batch_id"], record["data"]["correlation_id"]), set()).add(record["event_id"])
    assert all(len(ids[request]) == 1 for request in wanted), "every copy carries the same event id"


@pytest.mark.parametrize("actor", ACTORS)
async def test_killing_an_actor_disturbs_no_other(
    service: RunningService, platform: Platform, unique_name: Callable[[str], str], actor: str
) -> None:
    before = service.restarts()

    async def kill(_: Traffic) -> None:
        assert service.call(service.service.root.kill, actor)
        await wait_until(lambda: service.restarts()[actor] == before[actor] + 1)

    traffic = await traffic_with(service, platform, unique_name(actor), kill)
    assert service.restarts() == {**before, actor: before[actor] + 1}
    assert {status for _, status in traffic.statuses} <= {200, 503}
    assert {status for (kind, status) in traffic.statuses if kind == "/healthz"} == {200}
    if actor != "http":
        # Reads go through no other actor; only what a batch's actor was to record may have died with it.
        refused = {kind for kind, status in traffic.statuses if status != 200}
        assert refused <= ({"complete"} if actor == "batches" else set())
    if actor == "http":
        assert traffic.resets <= WORKERS, "at most the requests that were in flight"
    else:
        assert traffic.resets == 0
    await assert_all_announced(traffic)
    async with Orchestrator(service.base) as orchestrator:
        assert await orchestrator.metric("bcs_actor_restarts_total", actor=actor) == before[actor] + 1


async def test_killing_the_actor_of_a_batch_at_work_loses_none_of_its_events(
    service: RunningService, platform: Platform, unique_name: Callable[[str], str]
) -> None:
    before = service.restarts()
    async with Orchestrator(service.base) as orchestrator:
        killed_before = await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") or 0

    async def kill(traffic: Traffic) -> None:
        assert await asyncio.to_thread(service.run, kill_batches_at_work, service, traffic.batches)

    traffic = await traffic_with(service, platform, unique_name("batch"), kill)
    assert service.restarts() == before, "their supervisor lives on"
    assert {status for _, status in traffic.statuses} == {200}
    assert traffic.resets == 0
    await assert_all_announced(traffic)
    async with Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") or 0) > killed_before
