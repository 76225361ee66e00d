"""Rebalances and fencing as Apache Kafka does them, or whichever broker the environment names."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.kafka.group import Group
from tests.kafka.services import (
    IN_TIME_SECONDS,
    as_overrides,
    assert_nothing_crashed,
    replica,
    service_on,
    shared_names,
)
from tests.kafka.traffic import Traffic
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import BcsProcess, Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

# Seconds between a zombie's commits: one is due when it wakes up, or only when it joins again and gives up what it had.
COMMITS = {"at once": 2.0, "joining": 3600.0}


async def test_replicas_that_join_leave_and_die_lose_nothing(
    kafka: str, redis_url: str, batch: str, tmp_path: Path
) -> None:
    names = shared_names(batch)
    async with (
        service_on(kafka, redis_url, instance_name="first", **as_overrides(names)) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        traffic = Traffic(platform, orchestrator, batch)
        async with group.watched(), traffic.flowing():
            await group.stable_with(1)
            with (
                replica(tmp_path, kafka, redis_url, "dies", names) as dies,
                replica(tmp_path, kafka, redis_url, "leaves", names) as leaves,
            ):
                await group.stable_with(3)
                await traffic.more()
                leaves.signal(signal.SIGTERM)
                assert await leaves.ended() == 0
                await group.stable_with(2)
                await traffic.more()
                dies.signal(signal.SIGKILL)
                await dies.ended()
            await group.stable_with(1)
            await traffic.more()
        await group.caught_up()
        await traffic.assert_nothing_lost()
        assert set(traffic.statuses) == {200}
        await assert_nothing_crashed(service, orchestrator)


@asynccontextmanager
async def frozen_before_its_commit(
    zombie: BcsProcess, platform: Platform, group: Group, batch: str
) -> AsyncIterator[list[str]]:
    """A process that is stopped with something to commit, until the end of the block; gives the essays it has taken."""
    essays: list[str] = []
    async with Orchestrator(zombie.base) as orchestrator:
        while True:
            essays.append(f"essay-{len(essays)}")
            # The second event counts only behind the first: once it is answered for, both have been applied.
            await platform.send(spellchecked(batch, essays[-1]), registered(f"{batch}-{essays[-1]}", ["a"]))
            await platform.send(spellchecked(f"{batch}-{essays[-1]}", "a"))
            await wait_until(partial(is_applied, orchestrator, f"{batch}-{essays[-1]}"), IN_TIME_SECONDS)
            zombie.signal(signal.SIGSTOP)
            if not await group.at_the_end():
                break
            zombie.signal(signal.SIGCONT)
    try:
        yield essays
    finally:
        zombie.signal(signal.SIGCONT)


async def is_applied(orchestrator: Orchestrator, batch: str) -> bool:
    return await orchestrator.to_run(batch) == ["ai_feedback"]


@pytest.mark.parametrize(
    ("which", "heir_leaves"),
    [
        ("at once", False),
        pytest.param("joining", False, marks=pytest.mark.release),
        pytest.param("at once", True, marks=pytest.mark.release),
    ],
)
async def test_the_late_commit_of_a_zombie_is_refused(
    kafka: str, redis_url: str, batch: str, tmp_path: Path, which: str, heir_leaves: bool
) -> None:
    names = shared_names(batch)
    interval = {"BCS_INTAKE_COMMIT_INTERVAL_SECONDS": COMMITS[which]}
    async with (
        Platform(kafka) as platform,
        Group(kafka, batch) as group,
        group.watched(),
        AsyncExitStack() as services,
    ):
        zombie = services.enter_context(replica(tmp_path, kafka, redis_url, "zombie", names, **interval))
        await zombie.answers("/healthz")
        await group.stable_with(1)
        async with frozen_before_its_commit(zombie, platform, group, batch) as essays:
            heirs = await services.enter_async_context(AsyncExitStack())
            await heirs.enter_async_context(service_on(kafka, redis_url, instance_name="heir", **as_overrides(names)))
            await group.caught_up()
            essays += [f"more-{number}" for number in range(50)]
            await platform.send(*(spellchecked(batch, essay) for essay in essays[-50:]))
            await group.caught_up()
            if heir_leaves:
                await heirs.aclose()
                await group.stable_with(0)
        if not heir_leaves:
            await wait_until(lambda: "offset_commit_failed" in zombie.log.read_text(), IN_TIME_SECONDS)
        await group.stable_with(1 if heir_leaves else 2)
        # Back in the group, it is worth as much as any other.
        essays.append("last")
        await platform.send(registered(batch, essays), spellchecked(batch, "last"))
        async with Orchestrator(zombie.base) as orchestrator:
            await wait_until(lambda: is_applied(orchestrator, batch), IN_TIME_SECONDS, description="nothing is lost")
        zombie.signal(signal.SIGTERM)
        assert await zombie.ended() == 0
        await heirs.aclose()
        # Whoever was last has committed all of it.
        await group.caught_up()
