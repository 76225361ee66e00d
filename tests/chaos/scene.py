"""A service whose Kafka can be cut off, under a load that can be seen through an outage."""

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bcs.domain.state import BatchState
from tests.chaos.callers import Callers
from tests.chaos.ground import Ground, prepared
from tests.chaos.history import History
from tests.chaos.load import Asked, Load
from tests.support.service import BcsProcess, Orchestrator

DEADLINE_SECONDS = 5.0
EVENTS_A_SECOND = 150
_SEED = 10
CHUNK = 15
_PAUSE_SECONDS = 0.05
_CALLERS = 6


class Scene:
    """A service under load.

    :param telling: held while events are told, and by whoever wants none to be.
    :param asked: every request, as it ended.
    """

    def __init__(self, ground: Ground, process: BcsProcess, events: int) -> None:
        self.ground, self.process, name = ground, process, ground.name
        self.orchestrator = Orchestrator(process.base)
        self.callers = Callers([process.base], name)
        self.history = History(_SEED, events, name)
        self.asked = list[Asked]()
        port = int(process.environment["BCS_HTTP_PORT"])
        self.load = Load(port, name, self.callers.done, self.callers.undone, _PAUSE_SECONDS, self.asked)
        self.telling = anyio.Lock()

    async def tell(self) -> None:
        """Tell all events, evenly."""
        told = self.history.told
        for start in range(0, len(told), CHUNK):
            async with self.telling:
                await self.ground.platform.send(*(one.event for one in told[start : start + CHUNK]))
            # Evenly, at this rate.
            await anyio.sleep(CHUNK / EVENTS_A_SECOND)

    async def ask(self) -> None:
        """Ask, each caller one request after another, until it is enough."""
        async with anyio.create_task_group() as group:
            for caller in range(_CALLERS):
                group.start_soon(self.load.call, caller, caller % 2 == 0)

    async def knows(self, batch: str) -> bool:
        """Whether an event about this batch was applied."""
        return await self.ground.store.state(batch) != BatchState()

    async def assert_no_restart(self) -> None:
        """Nobody crashed."""
        restarts = [
            labels for name, labels, value in await self.orchestrator.samples() if "restarts_total" in name and value
        ]
        assert restarts == [], self.process.log.read_text()

    def between(self, began: float, ended: float) -> list[Asked]:
        """The requests that began and ended then."""
        return [one for one in self.asked if began <= one.began and one.began + one.seconds <= ended]

    def megabytes(self) -> int:
        """The memory that the process has."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kilobytes) // 1024


@asynccontextmanager
async def prepared_scene(directory: Path, name: str, events: int) -> AsyncIterator[Scene]:
    """A scene whose service runs; at the end it must stop in order."""
    async with prepared(directory, name, cuttable=True) as ground:
        with ground.serve("process", BCS_REQUEST_DEADLINE_SECONDS=DEADLINE_SECONDS) as process:
            await process.answers()
            scene = Scene(ground, process, events)
            async with scene.orchestrator:
                await scene.callers.prepare(ground.platform)
                yield scene
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
