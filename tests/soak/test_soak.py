"""Random large and small inputs at the limits for three minutes: nobody waits for what is large."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.wire import topics
from tests.chaos.figures import percentile
from tests.support.events import Event, cj_completed, envelope, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release, pytest.mark.serial]

ROOT = Path(__file__).parents[2]
SECONDS, QUIET_SECONDS, DENSE_SECONDS = 120.0, 20.0, 60.0
LONGEST_STALL_SECONDS, LONGEST_HEALTHZ_SECONDS = 0.1, 0.25
SEED = 15
MOST_ESSAYS, MOST_BYTES = 20_000, 1024 * 1024
# An event about up to 20,000 essays, and three looks at batches of that size, so often. While they come densely the
# service is busy with something large most of the time; more would wait in Kafka for its turn.
LARGE_INTERVAL_SECONDS, DENSE_INTERVAL_SECONDS = 3.0, 1.0
LARGE_BATCHES = 8
PHASES = ("spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching")
ESSAYS = [f"essay-{number:08}-abcdefgh" for number in range(MOST_ESSAYS)]


@dataclass
class Measured:
    """What callers saw, in seconds, and what the process said of itself."""

    small: list[float] = field(default_factory=list)
    healthz: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        return f"small batches {shown(self.small)}; /healthz {shown(self.healthz)}" + (
            f"; large batches {shown(self.large)}" if self.large else ""
        )


def shown(times: Sequence[float]) -> str:
    """The usual and the longest of times."""
    p50, p99, longest = (percentile(times, percent) * 1000 for percent in (50, 99, 100))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms of {len(times)}"


class Inputs:
    """Events at random, of which each kind comes about as often as any other."""

    def __init__(self, batch: str, random: Random) -> None:
        self._batch, self._random, self._numbers = batch, random, count()
        self.kinds: Sequence[Callable[[], Event]] = (
            self.roster,
            self.outcome,
            self.all_ended,
            self.too_many,
            self.invalid_ids,
            self.too_large,
            self.junk,
            self.one_essay,
        )
        self.made: list[Event] = []
        self.sent = dict.fromkeys((kind.__name__ for kind in self.kinds), 0)

    def make(self, events: int) -> None:
        """Make events of any kind. Beforehand, since that holds up the loop on which answers are measured."""
        for _ in range(events):
            kind = self._random.choice(self.kinds)
            self.sent[kind.__name__] += 1
            self.made.append(kind())

    def name(self) -> str:
        """One of the large batches."""
        return f"{self._batch}-large-{self._random.randrange(LARGE_BATCHES)}"

    def roster(self) -> Event:
        return registered(self.name(), ESSAYS)

    def outcome(self) -> Event:
        # As many as fit: each has its id and that of its text.
        some = self._random.sample(ESSAYS, self._random.randint(1, 9000))
        return phase_outcome(self.name(), self._random.choice(PHASES), some, ESSAYS[: self._random.randint(0, 3000)])

    def all_ended(self) -> Event:
        return cj_completed(self.name(), ESSAYS, [])

    def too_many(self) -> Event:
        return phase_outcome(f"{self._batch}-{next(self._numbers)}", "nlp", [], [f"{n:06}" for n in range(90_000)])

    def invalid_ids(self) -> Event:
        data = {"entity_id": self.name(), "expected_essay_count": 2, "essay_ids": [0]}
        value = json.dumps(envelope(topics.ESSAYS_REGISTERED, data)).encode()
        return Event(topics.ESSAYS_REGISTERED, b"key", value.replace(b"[0]", b"[" + b"1," * 474_999 + b"1]"))

    def too_large(self) -> Event:
        return Event(topics.SPELLCHECK_COMPLETED, b"key", b'{"x": "' + b"x" * MOST_BYTES + b'"}')

    def junk(self) -> Event:
        return Event(topics.CJ_COMPLETED, b"key", self._random.randbytes(self._random.randint(0, MOST_BYTES // 2)))

    def one_essay(self) -> Event:
        return spellchecked(self.name(), self._random.choice(ESSAYS))


class WatchedService:
    """A service in a process of its own, see `tests.soak.watched_service`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.began = self._hear()

    def begin(self) -> None:
        """Measure from now on."""
        self._say()

    def end(self) -> dict[str, Any]:
        """Measure no longer, and stop."""
        self._say()
        return self._hear()

    def _say(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        heard: dict[str, Any] = json.loads(self._process.stdout.readline())
        return heard


@pytest.fixture
def service(module_kafka: str, redis_url: str, database_url: str, tmp_path: Path) -> Iterator[WatchedService]:
    settings = {"kafka_bootstrap_servers": module_kafka, "redis_url": redis_url, "database_url": database_url}
    command = [sys.executable, "-m", "tests.soak.watched_service", json.dumps({**settings, "log_level": "INFO"})]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            yield WatchedService(process)
        finally:
            process.kill()


def batches(prefix: str) -> Iterator[tuple[str, list[Event]]]:
    """Small batches, each with the events of a class of thirty."""
    for number in count():
        name = f"{prefix}-small-{number}"
        essays = [f"{name}-{essay}" for essay in range(30)]
        yield name, [registered(name, essays), *(spellchecked(name, essay) for essay in essays)]


async def measure(
    seconds: float,
    orchestrator: Orchestrator,
    platform: Platform,
    prefix: str,
    *,
    inputs: Inputs | None = None,
    interval_seconds: float = 0.0,
) -> Measured:
    """Register, complete and ask about small batches in two rows, beside inputs that are large.

    :param interval_seconds: between two inputs that are large.
    """
    measured, ends = Measured(), time.monotonic() + seconds

    async def repeat(interval_seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < ends:
            began = time.monotonic()
            await step()
            # Evenly, at this rate.
            await anyio.sleep(max(0.0, interval_seconds - (time.monotonic() - began)))

    async def timed(times: list[float], path: str, **body: object) -> None:
        began = time.perf_counter()
        answer = await (orchestrator.define(**body) if body else orchestrator.get(path))  # type: ignore[arg-type]
        times.append(time.perf_counter() - began)
        measured.statuses.add(answer.status)

    async def small() -> None:
        name, events = next(names)
        await platform.send(*events)
        await wait_until(partial(is_complete, orchestrator, name), 30)
        for _ in range(5):
            await timed(measured.small, "", batch_id=name)

    async def large() -> None:
        assert inputs
        await platform.send(inputs.made.pop())

    async def look() -> None:
        assert inputs
        name = inputs.name()
        await timed(measured.large, f"/internal/v1/batches/{name}?limit=5000")
        await timed(measured.large, f"/internal/v1/batches/{name}/history?limit=500")
        await timed(measured.large, "", batch_id=name)

    names = batches(prefix)
    async with anyio.create_task_group() as group:
        group.start_soon(repeat, 0.02, partial(timed, measured.healthz, "/healthz"))
        for _ in range(2):
            group.start_soon(repeat, 0.05, small)
        if inputs:
            group.start_soon(repeat, interval_seconds, large)
            group.start_soon(repeat, interval_seconds, look)
    return measured


async def is_complete(orchestrator: Orchestrator, batch: str) -> bool:
    return await orchestrator.to_run(batch, "spellcheck") == []


async def test_random_inputs_at_the_limits_hold_up_nobody_for_three_minutes(
    service: WatchedService,
    module_kafka: str,
    unique_name: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = unique_name("soak")
    async with Platform(module_kafka) as platform, Orchestrator(service.began["base"], keep_alive=True) as orchestrator:
        quiet = await measure(QUIET_SECONDS, orchestrator, platform, f"{batch}-quiet")
        inputs = Inputs(batch, Random(SEED))
        inputs.make(int(SECONDS / LARGE_INTERVAL_SECONDS + DENSE_SECONDS / DENSE_INTERVAL_SECONDS) + 2)
        service.begin()
        loaded = await measure(
            SECONDS, orchestrator, platform, batch, inputs=inputs, interval_seconds=LARGE_INTERVAL_SECONDS
        )
        dense = await measure(
            DENSE_SECONDS,
            orchestrator,
            platform,
            f"{batch}-dense",
            inputs=inputs,
            interval_seconds=DENSE_INTERVAL_SECONDS,
        )
        await wait_until(partial(platform.caught_up, service.began["group"]), 120)
        itself = await anyio.to_thread.run_sync(service.end)
    with capsys.disabled():
        sys.stdout.write(
            f"\nquiet: {quiet}\nsoak: {loaded}\ndense: {dense}\nsent: {inputs.sent}\nthe process: {itself}\n"
        )
    assert loaded.statuses | dense.statuses <= {HTTPStatus.OK, HTTPStatus.NOT_FOUND}
    assert itself["restarts"] == []
    assert 0 < itself["busy_stall_seconds"] < LONGEST_STALL_SECONDS
    assert max(*loaded.healthz, *dense.healthz) < LONGEST_HEALTHZ_SECONDS
