"""Requests from many callers at a time, on bare sockets: a client that does more would be slower than the service.

In a test's own event loop, or as a process of its own.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import uvloop

from bcs.domain.facts import Outcome
from tests.chaos.callers import Callers
from tests.chaos.connection import GOODBYE, Connection, Ending
from tests.chaos.ground import Ground
from tests.chaos.history import History
from tests.support.forked import ForkedProcess, made_fifo
from tests.support.service import COMPLETE, DEFINE
from tests.support.waiting import wait_until

SETTLED_SECONDS = 60

_PHASE = "spellcheck"


@dataclass(frozen=True)
class Asked:
    """One request, from the moment at which its connection was there.

    :param batch: which it was about.
    :param outcome: the status of the answer, or how it ended without one.
    """

    path: str
    batch: str
    began: float
    seconds: float
    outcome: str


@dataclass
class Tally:
    """What came of many requests. Tallies add up.

    :param asked: the correlation ids of those that might be announced.
    :param pruned: of those, which were answered with a pruning.
    :param recorded: batches whose phase was answered to be recorded.
    :param slowest: the longest time that an answer took, in seconds.
    :param seconds: from the first request to the last answer.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """How many were answered in a second."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.isdecimal()) / self.seconds

    @property
    def unanswered(self) -> int:
        """How many were sent and got no answer."""
        return self.outcomes[Ending.RESET] + self.outcomes[Ending.HUNG]

    def add(self, more: "Tally") -> None:
        """Count others too."""
        self.outcomes += more.outcomes
        self.asked += more.asked
        self.pruned += more.pruned
        self.recorded += more.recorded
        self.slowest = max(self.slowest, more.slowest)


@dataclass
class Load:
    """Callers, each with one request after another: a pruning, a report, a resolution without a pruning, and again.

    :param done: a batch whose spellcheck is complete: every answer prunes and announces it.
    :param undone: a batch with a failed essay: no answer ever may.
    :param pause_seconds: between two requests of a caller.
    :param kept: every request, where they are wanted.
    """

    port: int
    name: str
    done: str
    undone: str
    pause_seconds: float = 0.0
    kept: list[Asked] | None = None
    tally: Tally = field(default_factory=Tally)
    enough: bool = False

    async def call(self, caller: int, keep_alive: bool = True, halt_seconds: float = 0.0) -> None:
        """One caller's requests, until it is enough, or until nobody listens any more.

        :param keep_alive: whether to keep the connection, as long as the service does.
        :param halt_seconds: how long to wait before the last bytes of each request.
        """
        connection: Connection | None = None
        number = 0
        try:
            while not self.enough:
                if connection is None or connection.over:
                    if connection:
                        connection.close()
                    connection = await Connection.open(self.port)
                number += 1
                await self._ask(connection, f"{self.name}-{caller}-{number}", number % 3, keep_alive, halt_seconds)
                # Callers who never pause would measure the machine; the overload has such callers.
                await asyncio.sleep(self.pause_seconds)
        except ConnectionError:  # some come while the kernel still shakes hands, as resets
            self.tally.outcomes[Ending.REFUSED] += 1
        finally:
            if connection:
                connection.close()

    async def _ask(self, connection: Connection, name: str, kind: int, keep_alive: bool, halt_seconds: float) -> None:
        batch = name if kind == 2 else self.done if kind else self.undone
        if kind == 2:
            path, body = COMPLETE, {"batch_id": batch, "phase_name": _PHASE, "success": True}
        else:
            path = DEFINE
            body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": name}
        if kind == 1:
            self.tally.asked.append(name)
        began = time.monotonic()
        outcome, answer = await connection.ask(_post(path, body, keep_alive), halt_seconds)
        seconds = time.monotonic() - began
        self.tally.outcomes[outcome] += 1
        self.tally.slowest = max(self.tally.slowest, seconds - halt_seconds)
        if self.kept is not None:
            self.kept.append(Asked(path, batch, began, seconds, outcome))
        if outcome == "200":
            self._check(name, kind, json.loads(answer))

    def _check(self, name: str, kind: int, answer: dict[str, Any]) -> None:
        if kind == 2:
            self.tally.recorded.append(name)
        elif kind == 1:
            assert answer["pruned_phases"] == [_PHASE], answer
            self.tally.pruned.append(name)
        else:
            assert answer["final_pipeline"] == [_PHASE, "ai_feedback"], answer


def _post(path: str, body: dict[str, Any], keep_alive: bool) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1".encode(),
        b"Host: bcs",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
        *([] if keep_alive else [GOODBYE]),
    ]
    return b"\r\n".join([*lines, b"", content])


async def assert_kept(tally: Tally, callers: Callers, history: History, ground: Ground) -> int:
    """All that was told and answered is there: events applied and committed, reports recorded, prunings announced.

    :returns: how many announcements there are, copies included.
    """

    async def committed() -> bool:
        # Past the last event that was acknowledged may lie a copy of it whose acknowledgement was cut off.
        return all((at or 0) >= end for at, end in (await ground.platform.uncommitted(ground.name)).values())

    await wait_until(committed, SETTLED_SECONDS, description="all offsets are committed")
    for batch, state in history.model().items():
        assert await ground.store.state(batch) == state, f"of {batch} something is lost, or made up"
    for batch in tally.recorded:
        assert (await ground.store.state(batch)).reports[_PHASE].outcome is Outcome.COMPLETED
    callers.asked.update(tally.asked)
    callers.pruned.update(tally.pruned)
    return await callers.assert_announced(ground.platform)


class LoadProcess:
    """So many callers in a process of their own.

    :param directory: for its files.
    """

    def __init__(self, load: Load, callers: int, directory: Path) -> None:
        directory.mkdir()
        arguments = [str(load.port), load.name, load.done, load.undone, str(callers)]
        end, self._said, self._log = (directory / name for name in ("end", "said", "log"))
        self._until = made_fifo(end)
        for file in (self._said, self._log):
            file.touch()
        self._process = ForkedProcess(
            arguments, os.environ, stdin=end, stdout=self._said, stderr=self._log, program=call_until_told
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._until.close()
        self._process.kill()
        self._process.wait()

    async def enough(self) -> Tally:
        """Let them finish what they have begun, and hear what came of it."""
        self._until.close()
        await wait_until(lambda: self._process.poll() is not None, SETTLED_SECONDS, description="all callers finish")
        assert self._process.returncode == 0, self._log.read_text()
        said = json.loads(self._said.read_text())
        return Tally(**{**said, "outcomes": Counter(said["outcomes"])})


def call_until_told() -> None:
    """Call until the input ends."""
    uvloop.run(_call_until_told(*sys.argv[1:]))


async def _call_until_told(port: str, name: str, done: str, undone: str, callers: str) -> None:
    load = Load(int(port), name, done, undone)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        load.enough = True
        loop.remove_reader(sys.stdin.fileno())

    loop.add_reader(sys.stdin.fileno(), stop)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(callers)):
            # One in ten connects anew each time, so that there are always some in the backlog.
            group.create_task(load.call(number, keep_alive=number % 10 > 0))
    load.tally.seconds = time.monotonic() - began
    json.dump(vars(load.tally), sys.stdout)
