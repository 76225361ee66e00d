"""Row 16: PostgreSQL is killed, frozen and restarted under load, and no fact is missing from the record.

The moments, and the events, are drawn from a seed.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.devtools.servers.postgres import PostgresServer
from tests.chaos.figures import Note, percentile
from tests.chaos.recorded import RecordedScene, prepared_recorded_scene
from tests.chaos.schedule import A_BATCH, kill_a_batch
from tests.chaos.sizes import SIZES
from tests.chaos.stage import DRILL, kill_actor
from tests.support.service import BcsProcess
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

EVENTS = SIZES.record_events
LONGEST_PAUSE_SECONDS = 0.5
STATEMENT_SECONDS = 1.0 if IN_FULL else 0.5
LONGEST_AWAY_SECONDS = 1.5 * STATEMENT_SECONDS
KINDS = ["killed", "frozen", "restarted"]
MAX_CONNECTIONS = 9  # with the one for probes
KILLS = SIZES.record_kills
ARCHIVE = "archive"
RESTARTED = {ARCHIVE: "archive", A_BATCH: "batches/*"}  # what the metric calls each kind of victim
SETTINGS: dict[str, Any] = {"BCS_DATABASE_DEADLINE_SECONDS": STATEMENT_SECONDS}
LEAST_ANSWERED = 50
LEAST_RESTARTED = KILLS // 5  # of each kind


async def strike(postgres: PostgresServer, kind: str, away_seconds: float) -> None:
    """Let PostgreSQL go away, and come back."""
    if kind == "frozen":
        await anyio.to_thread.run_sync(postgres.freeze)
        # The fault is its length.
        await anyio.sleep(away_seconds)
        await anyio.to_thread.run_sync(postgres.thaw)
    elif kind == "killed":
        await anyio.to_thread.run_sync(postgres.kill)
        # The fault is its length.
        await anyio.sleep(away_seconds)
        await anyio.to_thread.run_sync(postgres.start)
    else:
        await anyio.to_thread.run_sync(postgres.restart)


@pytest.mark.parametrize("seed", [16])
async def test_whatever_happens_to_postgresql_no_fact_is_missing(
    tmp_path: Path, private_postgres: PostgresServer, note_figure: Note, seed: int
) -> None:
    async with prepared_recorded_scene(tmp_path, "record", EVENTS, private_postgres, **DRILL, **SETTINGS) as scene:
        async with anyio.create_task_group() as callers:
            callers.start_soon(scene.ask)
            async with anyio.create_task_group() as telling:
                telling.start_soon(scene.tell)
                happened, seconds = await strike_often(scene, private_postgres, Random(seed))
                await scene.assert_no_restart()
                victims = await kill_often(scene, private_postgres, Random(f"{seed} kills"))
            await wait_until(lambda: answered(scene))
            scene.load.enough = True
        figures = await settled(scene)
        restarts = await restarted(scene)
        assert restarts.keys() == set(RESTARTED.values())
        assert all(restarts[RESTARTED[victim]] <= killed for victim, killed in victims.items())
        note_figure(
            16,
            f"seed {seed}: PostgreSQL {dict(happened)} within {seconds:.0f} s: 0 restarts; then, killed under one more "
            f"strike of each: {dict(victims)}; {figures}",
        )


async def strike_often(scene: RecordedScene, server: PostgresServer, chance: Random) -> tuple[Counter[str], float]:
    """Nobody may crash; what happened, and in which time."""
    happened, began = Counter[str](), time.monotonic()
    for number in range(SIZES.record_strikes):
        # The schedule itself: at any moment.
        await anyio.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
        kind = KINDS[number % len(KINDS)]
        await strike(server, kind, chance.uniform(0, LONGEST_AWAY_SECONDS))
        happened[kind] += 1
        if chance.random() < 0.5:  # else it goes away again before it was found
            await wait_until(scene.up)
    await wait_until(scene.up)
    return happened, time.monotonic() - began


async def kill_often(scene: RecordedScene, server: PostgresServer, chance: Random) -> Counter[str]:
    """Those crash who are killed, and no other; how many of each.

    One that is killed when it has nothing more to do is not started again. So each kind is killed until enough of them
    were.
    """
    victims = Counter[str]()

    async def kill(victim: str, kill_one: Callable[[BcsProcess, str], Awaitable[bool]]) -> None:
        while victims[victim] < KILLS or (await restarted(scene))[RESTARTED[victim]] < LEAST_RESTARTED:
            # The schedule itself: at any moment.
            await anyio.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS / 5))
            victims[victim] += await kill_one(scene.process, victim)

    async with anyio.create_task_group() as group:
        group.start_soon(kill, ARCHIVE, kill_actor)
        group.start_soon(kill, A_BATCH, kill_a_batch)
        for kind in KINDS[: SIZES.record_strikes_among_kills]:
            await strike(server, kind, chance.uniform(0, LONGEST_AWAY_SECONDS))
            await wait_until(scene.up)
    return victims


async def restarted(scene: RecordedScene) -> Counter[str]:
    """How often the actors of each kind were started again; without those that never were."""
    samples = await scene.orchestrator.samples()
    return Counter(
        {labels["actor"]: int(count) for name, labels, count in samples if "restarts_total" in name and count}
    )


def answered(scene: RecordedScene) -> bool:
    """Whether enough requests of each kind were answered: on a busy machine that takes longer than the strikes."""
    return min(len(scene.load.tally.pruned), len(scene.load.tally.recorded)) >= LEAST_ANSWERED


async def settled(scene: RecordedScene) -> str:
    """All is kept, and was answered; in figures."""
    assert scene.load.tally.outcomes.keys() == {"200"}, scene.load.tally.outcomes
    took = [one.seconds for one in scene.asked]
    assert max(took) < DRILL["BCS_REQUEST_DEADLINE_SECONDS"]
    queued = await scene.orchestrator.metric("bcs_archive_entries_queued_total") or 0
    assert queued >= LEAST_ANSWERED, "PostgreSQL was missed"
    entries = await scene.assert_recorded()
    connections = await scene.connections()
    assert connections <= MAX_CONNECTIONS, "none was forgotten"
    return (
        f"{len(scene.asked)} requests, all answered 200 (p50 {percentile(took, 50) * 1000:.0f} ms, p99 "
        f"{percentile(took, 99):.2f} s, max {max(took):.2f} s); {entries} facts' entries in the history, 0 missing or "
        f"twice; {queued:.0f} had to wait in Redis, 0 are left, 0 parked; {connections} connections in the end"
    )
