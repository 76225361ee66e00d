"""An actor dies while hundreds wait for its answer: each of them learns of it at once, and none is left waiting."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import monotonic, time

import anyio
import pytest

from bcs.actors.messages import ApplyFacts
from bcs.domain.facts import Outcome, PhaseReported
from bcs.observability.failpoints import FailPoint
from bcs.supervision import ActorDied
from tests.chaos.figures import Note
from tests.chaos.sizes import SIZES
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ROUNDS = SIZES.rounds_of_asks
WITHIN_SECONDS = 0.1
DEADLINE_SECONDS = 10.0  # of a request, and of an ask: whoever is left waiting gets no other answer than its passing
PHASES = ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]


class Deaths:
    """Holds the actor of a batch, once it has messages in hand, until it dies one way or the other."""

    def __init__(self) -> None:
        self._to_be_held: dict[str, anyio.Event] = {}
        self._held: dict[str, anyio.Event] = {}

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `FailPointHook`."""
        if point is FailPoint.BATCH_RECEIVED and subject in self._to_be_held:
            self._held[subject] = self._to_be_held.pop(subject)
            await self._held[subject].wait()
            raise RuntimeError("a crash on purpose")

    def hold(self, batch: str) -> None:
        """Hold its next attempt; called on the service's loop, like all of this."""
        self._to_be_held[batch] = anyio.Event()

    def die(self, service: RunningService, batch: str, how: str) -> None:
        """Let the actor that is held die."""
        if how == "killed":
            assert service.service.root.kill(f"batches/{batch}")
        else:
            self._held[batch].set()


@pytest.fixture
def own_heap() -> Iterator[None]:
    """Keep what the test run has heaped up so far out of the collector's way: a look through it takes up to 0.4 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@asynccontextmanager
async def service_with(deaths: Deaths, redis_url: str) -> AsyncIterator[RunningService]:
    async with running_service(
        deaths.reach,
        redis_url=redis_url,
        kafka_bootstrap_servers="127.0.0.1:1",
        http_max_concurrent_requests=SIZES.pending_asks + 100,
        request_deadline_seconds=DEADLINE_SECONDS,
        shutdown_seconds=2.0,
    ) as service:
        yield service


def waiting_for(service: RunningService, batch: str) -> int:
    """How many messages the batch's actor has in hand and in its mailbox; runs on the service's loop."""
    children = service.service.batches.snapshot().children
    return sum(child.mailbox_depth for child in children if child.name == batch)


async def seconds_to_the_end_of_asks(service: RunningService, deaths: Deaths, batch: str, how: str) -> list[float]:
    """For each ask, the time from the order to die to its end. Runs on the service's loop, with nothing in between."""
    fact = PhaseReported("spellcheck", Outcome.COMPLETED, 1)
    ends: list[float] = []

    async def ask() -> None:
        try:
            await service.service.batches.ask(
                batch, lambda reply: ApplyFacts(batch, (fact,), reply=reply), DEADLINE_SECONDS
            )
        except ActorDied:
            ends.append(monotonic())

    deaths.hold(batch)
    async with anyio.create_task_group() as group:
        for _ in range(SIZES.pending_asks):
            group.start_soon(ask)
        await wait_until(lambda: waiting_for(service, batch) == SIZES.pending_asks)
        assert ends == []
        ordered = monotonic()
        deaths.die(service, batch, how)
    # The callers of these envelopes are gone, and no caller was told that the facts were recorded.
    await wait_until(lambda: waiting_for(service, batch) == 0)
    assert (await service.service.store.state(batch)).empty
    return [end - ordered for end in ends]


@pytest.mark.serial
@pytest.mark.usefixtures("own_heap")
@pytest.mark.parametrize("how", ["killed", "crashed"])
async def test_every_pending_ask_ends_with_the_actor(redis_url: str, note_figure: Note, how: str) -> None:
    deaths = Deaths()
    longest: list[float] = []
    async with service_with(deaths, redis_url) as service:
        for turn in range(ROUNDS):
            ends = await asyncio.to_thread(service.run, seconds_to_the_end_of_asks, service, deaths, f"b{turn}", how)
            assert len(ends) == SIZES.pending_asks, "each of them is told that the actor died"
            longest.append(max(ends))
        async with Orchestrator(service.base) as orchestrator:
            assert await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") == ROUNDS
    assert max(longest) < WITHIN_SECONDS
    note_figure(
        7,
        f"{SIZES.pending_asks} asks pending, their actor {how}, {ROUNDS} times: the last one ended after at most "
        f"{max(longest) * 1000:.1f} ms",
    )


@pytest.mark.parametrize("how", ["killed", "crashed"])
async def test_callers_over_http_do_not_notice_that_the_actor_dies(redis_url: str, note_figure: Note, how: str) -> None:
    deaths, batch, count = Deaths(), "reported", SIZES.pending_asks
    async with service_with(deaths, redis_url) as service, Orchestrator(service.base) as orchestrator:
        service.call(deaths.hold, batch)
        began = monotonic()
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(orchestrator.complete(batch, PHASES[number % 4])) for number in range(count)]
            await wait_until(lambda: service.call(waiting_for, service, batch) == count)
            ordered, ordered_us = monotonic(), int(time() * 1_000_000)
            assert ordered - began < DEADLINE_SECONDS, "none of them has run out of time yet"
            service.call(deaths.die, service, batch, how)
        seconds = monotonic() - ordered
        statuses = Counter(call.result().status for call in calls)
        assert statuses == {200: count}, "each is asked again, and the next incarnation records it"
        assert await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") == 1
        marks = (await asyncio.to_thread(service.run, service.service.store.state, batch)).reports
    assert {phase: mark.outcome for phase, mark in marks.items()} == dict.fromkeys(PHASES, Outcome.COMPLETED)
    assert all(mark.at_us <= ordered_us for mark in marks.values()), "asked again, each keeps the time of its request"
    note_figure(
        7, f"{count} requests pending, their actor {how}: all answered 200, the last one after {seconds * 1000:.0f} ms"
    )
