"""Row 19: Redis is away, and resolutions are answered from PostgreSQL; what they pruned is announced afterwards."""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.devtools.servers.postgres import PostgresServer
from tests.chaos.figures import Note, percentile
from tests.chaos.load import Asked, Load
from tests.chaos.recorded import RecordedScene, prepared_recorded_scene
from tests.chaos.scene import DEADLINE_SECONDS
from tests.chaos.sizes import SIZES
from tests.support.service import COMPLETE, DEFINE
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

EVENTS = SIZES.store_events
AWAY_SECONDS = SIZES.store_outage_seconds
LEAST_ANSWERED = 10  # in each outage, of resolutions and of reports
REDIS_DEADLINE_SECONDS = 0.5
# What was under way waits for its deadline; then the circuit opens.
PROMPTLY_SECONDS = REDIS_DEADLINE_SECONDS + 0.2


@dataclass
class SourcedLoad(Load):
    """Notes where each resolution was read.

    :param sources: the moment of each answer, and its source.
    """

    sources: list[tuple[float, str]] = field(default_factory=list)

    def _check(self, name: str, kind: int, answer: dict[str, Any]) -> None:
        super()._check(name, kind, answer)
        if kind != 2:
            self.sources.append((time.monotonic(), answer["source"]))


@asynccontextmanager
async def killed(scene: RecordedScene) -> AsyncIterator[None]:
    """Started again with what it had acknowledged."""
    await anyio.to_thread.run_sync(scene.ground.redis.servers[0].kill)
    yield
    await anyio.to_thread.run_sync(scene.ground.redis.servers[0].start)


@asynccontextmanager
async def frozen(scene: RecordedScene) -> AsyncIterator[None]:
    """Its connections stay open."""
    scene.ground.redis.servers[0].freeze()
    yield
    scene.ground.redis.servers[0].thaw()


@asynccontextmanager
async def cut_off(scene: RecordedScene) -> AsyncIterator[None]:
    """It runs, and can't be reached."""
    scene.store_line.refuse()
    await scene.store_line.cut()
    yield
    scene.store_line.accept()


KINDS = [killed, frozen, cut_off]


def enough_answered(scene: RecordedScene, since: float) -> bool:
    """Whether an outage has gone on for so many resolutions and reports as to show something."""
    paths = Counter(one.path for one in scene.between(since, time.monotonic()))
    return min(paths[DEFINE], paths[COMPLETE]) >= LEAST_ANSWERED


def answers(requests: dict[str, list[Asked]]) -> dict[str, dict[str, int]]:
    """How many requests of each path got which answer."""
    return {path: dict(Counter(one.outcome for one in some)) for path, some in requests.items()}


async def test_without_redis_postgresql_answers(
    tmp_path: Path, private_postgres: PostgresServer, note_figure: Note
) -> None:
    settings: dict[str, Any] = {
        "BCS_REDIS_DEADLINE_SECONDS": REDIS_DEADLINE_SECONDS,
        "BCS_REDIS_BREAKER_OPEN_SECONDS": 0.2,
        "BCS_DATABASE_DEADLINE_SECONDS": 4,  # a slow machine must not look like a second outage
    }
    during: dict[str, list[Asked]] = {DEFINE: [], COMPLETE: []}
    edges, back_after = list[Asked](), list[float]()
    async with prepared_recorded_scene(tmp_path, "store", EVENTS, private_postgres, cuttable=True, **settings) as scene:
        load = SourcedLoad(scene.load.port, "store", scene.load.done, scene.load.undone, 0.05, scene.asked)
        scene.load = load

        async def back() -> bool:
            # The last answer was read in Redis again, and a report is taken.
            return load.sources[-1][1] == "redis" and (await scene.orchestrator.complete("back", "nlp")).status == 200

        async with anyio.create_task_group() as callers:
            callers.start_soon(scene.ask)
            async with anyio.create_task_group() as telling:
                telling.start_soon(scene.tell)
                for number in range(SIZES.store_outages * len(KINDS)):
                    await wait_until(lambda: bool(load.sources) and load.sources[-1][1] == "redis")
                    async with KINDS[number % len(KINDS)](scene):
                        left = time.monotonic()
                        # The fault is its length: first while Redis is still asked, then while it is not.
                        await anyio.sleep(PROMPTLY_SECONDS)
                        opened = time.monotonic()
                        # Here Redis is not asked any more.
                        await anyio.sleep(AWAY_SECONDS)
                        await wait_until(partial(enough_answered, scene, opened), description="both kinds are answered")
                        ended = time.monotonic()
                    for one in scene.between(opened, ended):
                        during[one.path].append(one)
                    edges += scene.between(left, opened)
                    sources = Counter(source for moment, source in load.sources if opened < moment < ended)
                    assert sources.keys() == {"postgresql"}, (KINDS[number % len(KINDS)].__name__, answers(during))
                    assert sources["postgresql"] >= LEAST_ANSWERED
                    await wait_until(back)
                    back_after.append(time.monotonic() - ended)
            load.enough = True
        entries = await scene.assert_recorded()
        await scene.assert_no_restart()
    outcomes = answers(during)
    assert outcomes[DEFINE].keys() == {"200"}
    assert outcomes[COMPLETE].keys() == {"503"}
    assert len(load.tally.pruned) >= LEAST_ANSWERED * SIZES.store_outages * len(KINDS) / 2
    took = [one.seconds * 1000 for some in during.values() for one in some]
    names = ", ".join(kind.__name__ for kind in KINDS)
    at_first = Counter(one.outcome for one in edges if one.path == DEFINE)
    note_figure(
        19,
        f"Redis {names} {SIZES.store_outages} times each for {AWAY_SECONDS:.0f} s: "
        f"resolutions {outcomes[DEFINE]}, all from PostgreSQL, reports {outcomes[COMPLETE]}, p50 "
        f"{percentile(took, 50):.0f} ms, p99 {percentile(took, 99):.0f} ms; in the first {PROMPTLY_SECONDS:.1f} s "
        f"resolutions {dict(at_first)} within {max(one.seconds for one in edges):.2f} s; back in Redis after "
        f"{max(back_after):.1f} s at most; {len(load.tally.pruned)} prunings announced, {entries} facts' entries, "
        f"0 missing",
    )
    assert max(one.seconds for one in scene.asked) < DEADLINE_SECONDS
