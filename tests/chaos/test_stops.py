"""Row 12: a SIGTERM under load cuts nobody off, loses nothing, and takes no longer than its budget.

The moment of each, and the events, are drawn from a seed.
"""

import signal
import time
from pathlib import Path
from random import Random

import anyio
import pytest

from tests.chaos.callers import Callers
from tests.chaos.connection import Ending
from tests.chaos.figures import Note, percentile
from tests.chaos.ground import Ground, prepared
from tests.chaos.history import History, Told
from tests.chaos.load import Load, Tally, assert_kept
from tests.chaos.sizes import SIZES
from tests.support.service import BcsProcess
from tests.support.waiting import wait_until

# At every commit: tests/integration/test_stop_under_load.py, and one stop of a process in tests/e2e/test_process.py.
pytestmark = [pytest.mark.anyio, pytest.mark.release]

LANES = min(3, -(-SIZES.stops // 3))  # services at a time, each with one life after another
BUDGET_SECONDS = 8.0
DRAINS_SECONDS = [0.0, 0.0, 0.3, 1.0]
CHUNKS, CHUNK = 8, 20
# Whether a caller keeps its connection, and how long it takes to send the last bytes of a request.
CALLERS = [(True, 0.0), (True, 0.0), (False, 0.0), (False, 0.0), (True, 0.2), (False, 0.2)]
ANSWERS_BEFORE = 30


@pytest.mark.parametrize("seed", [12])
async def test_a_stop_cuts_nobody_off_and_loses_nothing(tmp_path: Path, note_figure: Note, seed: int) -> None:
    began = time.monotonic()
    total, seconds = Tally(), list[float]()
    async with anyio.create_task_group() as group:
        for lane in range(LANES):
            stops = SIZES.stops * (lane + 1) // LANES - SIZES.stops * lane // LANES
            group.start_soon(Lane(tmp_path / str(lane), f"lane-{seed}-{lane}", stops, total, seconds).run)
    assert len(seconds) == SIZES.stops
    assert max(seconds) < BUDGET_SECONDS
    answers = {outcome: count for outcome, count in sorted(total.outcomes.items()) if outcome != Ending.REFUSED}
    note_figure(
        12,
        f"seed {seed}: {SIZES.stops} stops under load, exit code 0 each; every request was answered: {answers}; "
        f"{len(total.recorded)} reports and {SIZES.stops * CHUNKS * CHUNK} events kept, {len(total.pruned)} prunings "
        f"announced; from SIGTERM to exit p50 {percentile(seconds, 50):.2f} s, max {max(seconds):.2f} s of "
        f"{BUDGET_SECONDS:.0f} s; {time.monotonic() - began:.0f} s",
    )


class Lane:
    """One service, stopped and started again and again.

    :param name: of the group and of the keys, and the seed.
    :param total: of all lanes.
    :param seconds: from each SIGTERM to the exit, of all lanes.
    """

    def __init__(self, directory: Path, name: str, stops: int, total: Tally, seconds: list[float]) -> None:
        self.directory, self.name, self.stops = directory, name, stops
        self.total, self.seconds = total, seconds
        self.chance = Random(name)
        self.tally = Tally()
        self.callers = Callers([], name)
        self.history = History(self.chance.randrange(2**32), stops * CHUNKS * CHUNK, name)

    async def run(self) -> None:
        """Live all the lives, and one more in which all that is left over is done."""
        told = self.history.told
        async with prepared(self.directory, self.name) as ground:
            for life in range(self.stops):
                mine = told[life * CHUNKS * CHUNK : (life + 1) * CHUNKS * CHUNK]
                await self.live(life, ground, [mine[at : at + CHUNK] for at in range(0, len(mine), CHUNK)])
            with ground.serve("last", BCS_SHUTDOWN_SECONDS=BUDGET_SECONDS) as process:
                await process.answers()
                await assert_kept(self.tally, self.callers, self.history, ground)
                process.signal(signal.SIGTERM)
                assert await process.ended() == 0
        self.total.add(self.tally)

    async def live(self, life: int, ground: Ground, chunks: list[list[Told]]) -> None:
        """Start it, and stop it in the middle of things."""
        environment = {
            "BCS_SHUTDOWN_SECONDS": BUDGET_SECONDS,
            "BCS_SHUTDOWN_DRAIN_SECONDS": self.chance.choice(DRAINS_SECONDS),
        }
        with ground.serve(f"life-{life}", **environment) as process:
            await process.answers()
            if not self.callers.bases:
                self.callers.bases.append(process.base)
                await self.callers.prepare(ground.platform)
            port = int(process.environment["BCS_HTTP_PORT"])
            load = Load(port, f"{self.name}-{life}", self.callers.done, self.callers.undone)
            before = self.chance.randrange(len(chunks))
            async with anyio.create_task_group() as group:
                for caller, how in enumerate(CALLERS):
                    group.start_soon(load.call, caller, *how)
                await self.tell(ground, chunks[:before])
                await wait_until(lambda: load.tally.outcomes["200"] >= ANSWERS_BEFORE)
                group.start_soon(self.stop, process)
                await self.tell(ground, chunks[before:])
        self.tally.add(load.tally)
        assert load.tally.outcomes[Ending.REFUSED] == len(CALLERS), "each asked until nobody listened any more"
        assert load.tally.outcomes.keys() <= {"200", "503", Ending.REFUSED}, load.tally.outcomes

    async def tell(self, ground: Ground, chunks: list[list[Told]]) -> None:
        """Tell these events."""
        for chunk in chunks:
            await ground.platform.send(*(one.event for one in chunk))

    async def stop(self, process: BcsProcess) -> None:
        """SIGTERM."""
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert await process.ended(BUDGET_SECONDS + 5) == 0, process.log.read_text()
        self.seconds.append(time.monotonic() - began)
