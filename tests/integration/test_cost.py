"""The cost of work in round trips, commands and bytes, which do not depend on the machine's load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hiredis import Reader

from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway, RedisSession
from bcs.storage.redis.multiplexer import _SharedConnection
from tests.support.events import cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ESSAYS = [f"{number:08x}-6f2c-4d3a-9b1e-5c7d8e9f0a1b" for number in range(30)]
# What one batch takes in Redis, whose essays have UUIDs for ids; a comparable service takes 29 kB.
BYTES = 3_300


class Ledger:
    """Every round trip to Redis that is about a batch, as the commands in it that name the batch."""

    def __init__(self, batch: str) -> None:
        self.trips: list[list[str]] = []
        self._batch = batch.encode()

    def note(self, commands: Sequence[Command]) -> None:
        named = [str(command[0]) for command in commands if any(self._names(part) for part in command)]
        # The index is written for many batches together, and once in ten seconds for each.
        named = [name for name in named if name != "ZADD"]
        if named:
            self.trips.append(named)

    def _names(self, part: object) -> bool:
        return self._batch in (part if isinstance(part, bytes) else str(part).encode())


@pytest.fixture
def ledger(batch: str, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger, exchange = Ledger(batch), RedisSession.exchange

    async def noted(self: RedisSession, commands: Sequence[Command]) -> list[Any]:
        ledger.note(commands)
        return await exchange(self, commands)

    def noted_together(line: _SharedConnection) -> None:
        if line._outgoing:
            ledger.note([tuple(_words(packed)) for packed in line._outgoing])
        flush(line)

    flush = _SharedConnection._flush
    monkeypatch.setattr(RedisSession, "exchange", noted)
    monkeypatch.setattr(_SharedConnection, "_flush", noted_together)
    return ledger


def _words(packed: bytes) -> list[str | bytes]:
    """A command of Redis's protocol, taken apart."""
    reader = Reader()
    reader.feed(packed)
    name, *rest = reader.gets()
    return [name.decode(), *rest]


@pytest.fixture
async def known(service: RunningService, platform: Platform, batch: str) -> str:
    """The batch, once its essays are registered and some of them spellchecked."""
    await platform.send(registered(batch, ESSAYS), *(spellchecked(batch, essay) for essay in ESSAYS[:10]))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


# The first summary of a batch is named in its facts, so that an erasure finds it.
STORED = ["SET", "HSET"]


async def warm_up(orchestrator: Orchestrator, ledger: Ledger, batch: str) -> None:
    """Ask until the summary is stored."""
    for _ in range(2):
        await orchestrator.to_run(batch)
    await wait_until(lambda: STORED in ledger.trips)
    ledger.trips.clear()


async def test_a_warm_answer_takes_one_round_trip_with_one_command(
    known: str, orchestrator: Orchestrator, ledger: Ledger
) -> None:
    await warm_up(orchestrator, ledger, known)
    assert await orchestrator.to_run(known) == ["spellcheck", "ai_feedback"]
    assert ledger.trips == [["HMGET"]]


async def test_an_answer_about_a_batch_just_written_takes_one_more(
    known: str, orchestrator: Orchestrator, ledger: Ledger
) -> None:
    assert await orchestrator.to_run(known) == ["spellcheck", "ai_feedback"]
    assert ledger.trips == [["EXISTS", "EXISTS", "GET", "HMGET"], ["HGETALL"]]


async def test_a_summary_is_stored_after_the_second_answer(
    known: str, orchestrator: Orchestrator, ledger: Ledger
) -> None:
    await orchestrator.to_run(known)
    ledger.trips.clear()
    await orchestrator.to_run(known)
    await wait_until(lambda: STORED in ledger.trips)
    assert ledger.trips == [["HMGET"], ["WATCH", "HMGET", "PTTL"], STORED]


async def test_an_answer_about_an_unknown_batch_takes_one_round_trip(
    orchestrator: Orchestrator, ledger: Ledger, batch: str
) -> None:
    for _ in range(2):
        assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
    assert ledger.trips == [["EXISTS", "EXISTS", "GET", "HMGET"]] * 2


async def test_an_answer_with_a_pruned_phase_takes_one_more(
    known: str, service: RunningService, platform: Platform, orchestrator: Orchestrator, ledger: Ledger
) -> None:
    await platform.send(*(spellchecked(known, essay) for essay in ESSAYS))
    await wait_until(lambda: platform.caught_up(service.group))
    await warm_up(orchestrator, ledger, known)
    assert await orchestrator.to_run(known) == ["ai_feedback"]
    # Redis may have to get the script first.
    assert ledger.trips in ([["HMGET"], ["EVALSHA"]], [["HMGET"], ["EVALSHA"], ["EVAL"]])
    ledger.trips.clear()
    assert await orchestrator.to_run(known) == ["ai_feedback"]
    assert ledger.trips == [["HMGET"], ["EVALSHA"]]


async def test_what_waits_for_a_batch_is_committed_in_one_round_trip(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str, ledger: Ledger
) -> None:
    # They come from Kafka in a few polls, and each finds what came before it being committed.
    await platform.send(*(spellchecked(batch, f"essay-{number}") for number in range(600)))
    await wait_until(lambda: platform.caught_up(service.group))
    assert {command for trip in ledger.trips for command in trip} <= {"EVALSHA", "EVAL"}
    assert len(ledger.trips) < 60, "a group commit takes all that waits"


async def test_many_callers_at_a_time_share_their_round_trips(
    known: str, service: RunningService, orchestrator: Orchestrator, ledger: Ledger
) -> None:
    await warm_up(orchestrator, ledger, known)
    async with Orchestrator(service.base, keep_alive=True) as caller, anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(caller.to_run, known)
    commands = [command for trip in ledger.trips for command in trip]
    assert commands == ["HMGET"] * 100
    assert len(ledger.trips) < len(commands)


async def test_a_batch_is_small_in_redis(
    known: str, service: RunningService, platform: Platform, orchestrator: Orchestrator, gateway: RedisGateway
) -> None:
    await platform.send(
        *(spellchecked(known, essay) for essay in ESSAYS),
        cj_completed(known, ESSAYS, []),
        *(phase_outcome(known, phase, ESSAYS, []) for phase in ("nlp", "ai_feedback", "student_matching")),
    )
    await wait_until(lambda: platform.caught_up(service.group))
    keys = BatchKeys(service.service.settings.redis_key_prefix, known)
    names = [keys.facts, keys.summary(service.service.definitions.current.law.fingerprint)]

    async def stored() -> bool:
        return await gateway.call(("EXISTS", *names)) == [len(names)]

    for _ in range(2):
        await orchestrator.to_run(known)
    await wait_until(stored)
    sizes = await gateway.call(*(("MEMORY", "USAGE", name, "SAMPLES", 0) for name in names))
    assert sum(sizes) <= BYTES
