"""Redis carries a write out and the reply is lost, over and over: each effect is there, as if it had happened once."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from time import monotonic, time

import pytest

from bcs.domain.facts import Outcome
from bcs.domain.progress import summarize
from bcs.domain.state import BatchState
from bcs.observability.failpoints import FailPoint
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.chaos.figures import Note
from tests.chaos.history import History
from tests.chaos.redis_servers import ON_A_CLUSTER, ChaosRedis, chaos_redis
from tests.chaos.sizes import SIZES
from tests.support.events import Event
from tests.support.kafka import Platform, platform_broker, values
from tests.support.laws import LAW
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

REPORTS = ANNOUNCEMENTS = SIZES.lost_replies // 10
COMMITS = SIZES.lost_replies - REPORTS - ANNOUNCEMENTS
CHUNK = 50  # events at a time
BURST = 3  # replies lost in a row, at most


@dataclass
class Executions:
    """Counts the commits of each batch: those that are sent, and those of which the service heard."""

    sent: Counter[str] = field(default_factory=Counter)
    heard_of: Counter[str] = field(default_factory=Counter)

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `FailPointHook`."""
        if point is FailPoint.BEFORE_EXEC:
            self.sent[subject] += 1
        elif point is FailPoint.AFTER_EXEC:
            self.heard_of[subject] += 1


@pytest.fixture
def kafka_bootstrap_servers(tmp_path: Path) -> Iterator[str]:
    with platform_broker(tmp_path / "kafka") as address:
        yield address


async def lose_replies(redis: ChaosRedis, executions: Executions, chance: Random, count: int) -> None:
    """Lose so many replies to commits in bursts; after each, some arrive."""
    await wait_until(lambda: executions.heard_of, description="it has got to work")
    goal = redis.replies_dropped + count
    while redis.replies_dropped < goal:
        burst = min(chance.randint(1, BURST), goal - redis.replies_dropped)
        dropped, heard_of = redis.replies_dropped + burst, executions.heard_of.total() + 2 * burst
        redis.drop_replies(b"EVALSHA", burst)
        await wait_until(partial(is_over, redis, executions, dropped, heard_of), 30)


def is_over(redis: ChaosRedis, executions: Executions, dropped: int, heard_of: int) -> bool:
    return redis.replies_dropped >= dropped and executions.heard_of.total() >= heard_of


async def feed(platform: Platform, group: str, events: list[Event], losing: asyncio.Task[None]) -> int:
    """Send all events, and from the first on again until enough replies are lost; return how many were sent."""
    sent = 0
    chunks = [events[start : start + CHUNK] for start in range(0, len(events), CHUNK)]
    for chunk in cycle(chunks):
        if sent >= len(events) and losing.done():
            break
        await platform.send(*chunk)
        sent += len(chunk)
        await wait_until(lambda: platform.caught_up(group), 30)
    await losing
    return sent


async def state_of(service: RunningService, batch: str) -> BatchState:
    return await asyncio.to_thread(service.run, service.service.store.state, batch)


def assert_refused(answer: Answer) -> None:
    assert answer.status == 503, answer.body
    assert int(answer.headers["Retry-After"]) >= 1


async def report(service: RunningService, orchestrator: Orchestrator, redis: ChaosRedis, batch: str) -> None:
    """Report a phase; the first reply is lost, and the commit is sent again."""
    # Of the commit alone: what is known of the batch is read before, and a probe queues each command.
    redis.drop_replies(b"report:spellcheck")
    dropped, began_us = redis.replies_dropped, int(time() * 1_000_000)
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert redis.replies_dropped == dropped + 1
    marks = (await state_of(service, batch)).reports
    assert marks.keys() == {"spellcheck"}
    assert marks["spellcheck"].outcome is Outcome.COMPLETED
    assert began_us <= marks["spellcheck"].at_us <= time() * 1_000_000


async def announce(orchestrator: Orchestrator, redis: ChaosRedis, batch: str) -> int:
    """Ask until there is an answer, always with the same correlation id; return how often that was refused."""
    goal = redis.replies_dropped + 1
    redis.drop_replies(as_uuid(f"about-{batch}").encode())  # only what is announced has it
    refusals = 0
    while (answer := await orchestrator.define(batch, correlation_id=f"about-{batch}")).status != 200:
        assert_refused(answer)
        refusals += 1
    assert answer.json["pruned_phases"] == ["spellcheck"]
    await wait_until(lambda: redis.replies_dropped == goal)
    return refusals


@pytest.mark.parametrize("seed", [5])
async def test_what_redis_carried_out_unheard_has_its_effect_once(
    tmp_path: Path, kafka_bootstrap_servers: str, note_figure: Note, seed: int
) -> None:
    began = monotonic()
    executions, history = Executions(), History(seed, 500 + 5 * SIZES.lost_replies, "batch")
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        chaos_redis(tmp_path, proxied=True) as redis,
        running_service(
            executions.reach,
            redis_url=redis.url,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            redis_deadline_seconds=1.0,
            redis_breaker_open_seconds=0.05,
            intake_commit_interval_seconds=0.02,
            outbox_poll_interval_seconds=0.02,
            metrics_interval_seconds=600,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        losing = asyncio.create_task(lose_replies(redis, executions, Random(seed), COMMITS))
        fed = await feed(platform, service.group, [told.event for told in history.told], losing)
        reported = [f"reported-{number}" for number in range(REPORTS)]
        for batch in reported:
            await report(service, orchestrator, redis, batch)
        # With a connection, the replies to all commits on it are lost.
        assert executions.sent.total() - executions.heard_of.total() >= COMMITS + REPORTS, "all met commits"

        for batch, model in history.model().items():
            assert await state_of(service, batch) == model
            summary = await asyncio.to_thread(service.run, service.service.store.summary, batch)
            assert summary == summarize(model, LAW, summary.version)
        assert {executions.sent[batch] for batch in reported} == {2}

        # Every node gets the script of the outbox now, so that no lost reply is the one that asks for it.
        for batch in reported:
            assert (await orchestrator.define(batch, correlation_id=f"about-{batch}")).status == 200
        refusals = {batch: await announce(orchestrator, redis, batch) for batch in reported}
        assert redis.replies_dropped == SIZES.lost_replies
        # Another server of a cluster takes the announcement at once.
        assert sum(refusals.values()) == (0 if ON_A_CLUSTER else ANNOUNCEMENTS)
        await assert_announced(platform, refusals)

        samples = await orchestrator.samples()
        applied = [value for name, _, value in samples if name == "bcs_events_processed_total"]
        assert sum(applied) == fed, "each event is told to be done once"
        assert [name for name, _, value in samples if name == "bcs_actor_restarts_total" and value] == []
        assert [name for name, _, value in samples if name == "bcs_dead_letters_total" and value] == []
    note_figure(
        5,
        f"{redis.replies_dropped} replies of Redis lost, each effect there exactly once: {COMMITS} of commits of {fed} "
        f"events, {REPORTS} of reports, {ANNOUNCEMENTS} of announcements; "
        f"{redis.connections_accepted} connections; {monotonic() - began:.0f} s",
    )


async def assert_announced(platform: Platform, refusals: dict[str, int]) -> None:
    """Each batch's pruning is announced under one event id, also where the announcement was stored more than once."""
    wanted = {batch: 2 + refused for batch, refused in refusals.items()}
    copies: defaultdict[str, list[str]] = defaultdict(list)

    async def all_there() -> bool:
        copies.clear()
        for record in values(await platform.messages(topics.PHASE_SKIPPED)):
            assert record["data"]["correlation_id"] == as_uuid(f"about-{record['data']['batch_id']}")
            copies[record["data"]["batch_id"]].append(record["event_id"])
        return all(len(copies[batch]) >= count for batch, count in wanted.items())

    await wait_until(all_there, description="everything that was stored is announced")
    assert copies.keys() == wanted.keys()
    assert {len(set(ids)) for ids in copies.values()} == {1}
    assert len({ids[0] for ids in copies.values()}) == len(copies)
