"""Row 17: PostgreSQL is away for long under load; only the queue in Redis notices, and is drained afterwards.

Once with room for all that waits, and once with hardly any.
"""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.devtools.servers.postgres import PostgresServer
from tests.chaos.figures import Note, percentile
from tests.chaos.load import Asked
from tests.chaos.recorded import RecordedScene, prepared_recorded_scene
from tests.chaos.scene import DEADLINE_SECONDS, EVENTS_A_SECOND
from tests.chaos.sizes import SIZES
from tests.support.service import COMPLETE, DEFINE
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

BEFORE_SECONDS = 1.0
SLOWER_SECONDS = 0.25
# What waited is written in a fraction of the time in which it came.
BACK_TO_NORMAL_SECONDS = 5.0 + SIZES.record_outage_seconds / 4
LIMIT = 30
IN_FLIGHT = 50
LEAST_REFUSED = 5
LEAST_OF_EACH = 10


def told(asked: list[Asked]) -> str:
    took = [one.seconds * 1000 for one in asked]
    return f"p50 {percentile(took, 50):.1f} ms, p99 {percentile(took, 99):.1f} ms, max {max(took):.0f} ms"


# At every commit: test_archive_kills.
async def test_a_long_outage_of_postgresql_is_not_noticed(
    tmp_path: Path, private_postgres: PostgresServer, note_figure: Note
) -> None:
    """There is room for all that has to wait."""
    server = private_postgres
    events = int((SIZES.record_outage_seconds + 2 * BEFORE_SECONDS) * EVENTS_A_SECOND)
    async with prepared_recorded_scene(tmp_path, "away", events, server) as scene:
        async with anyio.create_task_group() as callers:
            callers.start_soon(scene.ask)
            async with anyio.create_task_group() as telling:
                telling.start_soon(scene.tell)
                began = time.monotonic()
                # What is usual is measured for so long.
                await anyio.sleep(BEFORE_SECONDS)
                await wait_until(partial(some_of_each_since, scene, began), description="what is usual is known")
                left = time.monotonic()
                await anyio.to_thread.run_sync(server.kill)
                # The fault is its length.
                await anyio.sleep(SIZES.record_outage_seconds)
                await wait_until(partial(some_of_each_since, scene, left), description="it goes on without PostgreSQL")
                await assert_told_and_ready(scene)
                waiting, back = await scene.queued(), time.monotonic()
                await anyio.to_thread.run_sync(server.start)
                started = time.monotonic()
                await wait_until(scene.up)
            scene.load.enough = True
        drained = await drained_after(scene, started)
        assert scene.load.tally.outcomes.keys() == {"200"}, scene.load.tally.outcomes
        assert waiting > len(scene.between(left, back)), "each request left an entry"
        entries = await scene.assert_recorded()
        await scene.assert_no_restart()
        before, during = scene.between(began, left), scene.between(left, back)
        note_figure(
            17,
            f"PostgreSQL away for {SIZES.record_outage_seconds:.0f} s: {len(during)} requests meanwhile, all 200: "
            f"{told(during)} (before: {told(before)}); {waiting} entries waited, drained {drained:.1f} s after its "
            f"return; {entries} facts' entries in the history, 0 missing; 0 restarts",
        )
        assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS
        for path in (DEFINE, COMPLETE):
            slow, usual = (sorted(a.seconds for a in some if a.path == path) for some in (during, before))
            assert percentile(slow, 90) < percentile(usual, 90) + SLOWER_SECONDS
        assert drained < BACK_TO_NORMAL_SECONDS


def some_of_each_since(scene: RecordedScene, moment: float) -> bool:
    """Whether resolutions and reports were asked for, and answered, since then."""
    paths = Counter(one.path for one in scene.between(moment, time.monotonic()))
    return min(paths[DEFINE], paths[COMPLETE]) >= LEAST_OF_EACH


async def assert_told_and_ready(scene: RecordedScene) -> None:
    """Health tells that PostgreSQL is away, and requests are sent here all the same."""
    health = (await scene.orchestrator.get("/healthz")).json["dependencies"]
    unhealthy = {name for name, found in health.items() if found["status"] == "unhealthy"}
    assert unhealthy == {"postgresql"}
    assert (await scene.orchestrator.get("/readyz")).status == 200


async def drained_after(scene: RecordedScene, moment: float) -> float:
    """How long it took until nothing waited any more."""

    async def drained() -> bool:
        return await scene.queued() == 0

    await wait_until(drained, 60)
    return time.monotonic() - moment


async def test_a_full_queue_to_postgresql_holds_up_reports_and_intake_and_no_resolution(
    tmp_path: Path, private_postgres: PostgresServer, note_figure: Note
) -> None:
    server = private_postgres
    settings: dict[str, Any] = {
        "BCS_ARCHIVE_MAX_ENTRIES": LIMIT,
        "BCS_INTAKE_MAX_IN_FLIGHT": IN_FLIGHT,
        "BCS_KAFKA_MAX_POLL_RECORDS": 20,
        "BCS_DATABASE_DEADLINE_SECONDS": 4,  # a slow machine must not look like a second outage
    }
    events = 3 * (LIMIT + IN_FLIGHT)
    async with prepared_recorded_scene(tmp_path, "full", events, server, **settings) as scene:
        async with anyio.create_task_group() as callers:
            await anyio.to_thread.run_sync(server.kill)
            callers.start_soon(scene.ask)
            async with anyio.create_task_group() as telling:
                telling.start_soon(scene.tell)

                async def held_up() -> bool:
                    return (await scene.orchestrator.metric("bcs_intake_in_flight") or 0) >= IN_FLIGHT

                await wait_until(held_up, description="reading pauses")
                full = time.monotonic()

            async def asked_since() -> bool:
                return len([one for one in scene.asked if one.began > full and one.path == DEFINE]) > 30

            await wait_until(asked_since)
            await assert_told_and_ready(scene)
            assert await held_up(), "and pauses still, now that all is told"
            left, waiting = await scene.ground.platform.uncommitted(scene.ground.name), await scene.queued()
            behind = sum(end - (committed or 0) for committed, end in left.values())
            assert behind > IN_FLIGHT
            assert LIMIT <= waiting < LIMIT + IN_FLIGHT, "the queue is full, and bounded"
            await anyio.to_thread.run_sync(server.start)
            started = time.monotonic()
            await wait_until(scene.up)

            async def reads_on() -> bool:
                return await scene.ground.platform.caught_up(scene.ground.name)

            await wait_until(reads_on, BACK_TO_NORMAL_SECONDS, description="the intake reads on by itself")
            reads_on_after = time.monotonic() - started
            scene.load.enough = True
        outcomes = {
            path: Counter(one.outcome for one in scene.asked if one.path == path) for path in (DEFINE, COMPLETE)
        }
        entries = await scene.assert_recorded(explained=False)
        await scene.assert_no_restart()
        note_figure(
            17,
            f"room for {LIMIT} entries: {waiting} waited, {behind} events stayed in Kafka; resolutions meanwhile "
            f"{dict(outcomes[DEFINE])}, reports {dict(outcomes[COMPLETE])}; all read {reads_on_after:.1f} s after its "
            f"return; {entries} facts' entries, 0 missing",
        )
        assert outcomes[DEFINE].keys() == {"200"}, "what can be answered is answered"
        refused = [one for one in scene.asked if one.path == COMPLETE and one.outcome == "503"]
        assert outcomes[COMPLETE].keys() == {"200", "503"}, "before it was full, and then"
        assert len([one for one in refused if one.began > full]) > LEAST_REFUSED
        assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS
