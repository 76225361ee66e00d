"""Two replicas go from the last released build to this one and back, one at a time, while events and requests go on."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from random import Random

import aiohttp
import anyio

from bcs.config.pipelines import load_pipelines
from bcs.domain.history import FactsRecorded, Position
from bcs.domain.state import BatchState
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.chaos.forgetting import PIPELINE, REPORTED, Bounds, completions, roster
from tests.chaos.history import Told
from tests.e2e.runbooks.site import GROUP, Site
from tests.support.databases import archive_in
from tests.support.kafka import values
from tests.support.laws import LAW
from tests.support.service import Answer, Orchestrator
from tests.support.waiting import wait_until

REPLICAS = ("bcs-1", "bcs-2")

_CALLERS = 3
_CHUNK = 10
_PAUSE_SECONDS = 0.02
_PROBE_SECONDS = 0.1
_LOOK_SECONDS = 0.05
_MOST_TRIES = 20
_RETRY_SECONDS = 0.1
_PAGE = 1000
_CAUGHT_UP_SECONDS = 240.0


class RollingUpgrade:
    """The load, and what is known of it.

    :param former: a folder with the packages of the last released build.
    :param batches: how many are worked on.
    """

    def __init__(self, site: Site, former: Path, batches: int) -> None:
        self._site, self._former = site, former
        self._batches = [f"batch-{number}" for number in range(batches)]
        self._bounds = Bounds(load_pipelines(None))
        self._doors = {name: Orchestrator(f"http://127.0.0.1:{site.port(name)}") for name in REPLICAS}
        self._ready = set[str]()
        self._turns = count()
        self._owed = set[tuple[str, str, str]]()
        self._events: list[tuple[Told, Position]] = []
        self._told = self._over = False
        self.tries: Counter[str] = Counter()
        self.answers = self.reports = 0

    async def play(self) -> None:
        """Play all of it, and check it.

        :raises AssertionError: something was lost, or an answer was wrong.
        """
        for name in REPLICAS:
            await self._site.start(name, self._former)
        chance = Random(7)
        try:
            await self._tell(roster(self._batches), quickly=True)
            await self._caught_up()
            async with anyio.create_task_group() as group:
                group.start_soon(self._balance)
                group.start_soon(self._watch)
                async with anyio.create_task_group() as load:
                    load.start_soon(self._tell, completions(self._batches, chance))
                    for worker in range(_CALLERS):
                        load.start_soon(self._ask, worker)
                    load.start_soon(self._report)
                    await self._roll(self._former, None)
                    await self._roll(None, self._former)
                    self._told = True
                await self._caught_up()
                await self._look()
                self._over = True
            await self._check()
        finally:
            for door in self._doors.values():
                await door.__aexit__()

    def figures(self) -> str:
        """What there was, in a sentence."""
        return (
            f"{len(self._events)} events, {self.answers} answers, {self.reports} phase reports, {len(self._owed)} "
            f"announcements: 0 lost, 0 wrong; {sum(self.tries.values())} requests had to be repeated."
        )

    async def _caught_up(self) -> None:
        # Several rebalances take their time on a busy machine, above all where two builds share the group.
        left: dict[tuple[str, int], tuple[int | None, int]] = {}

        async def caught_up() -> bool:
            left.clear()
            left.update(await self._site.platform.uncommitted(GROUP))
            return not left

        with anyio.move_on_after(_CAUGHT_UP_SECONDS):
            await wait_until(caught_up, _CAUGHT_UP_SECONDS + 1)
        assert not left, f"not committed: {left}"

    async def _roll(self, before: Path | None, after: Path | None) -> None:
        """Replace one replica after the other, each when the one before is ready."""
        for name in REPLICAS:
            seen = self.answers
            await wait_until(lambda seen=seen: self.answers > seen + _CALLERS)  # type: ignore[misc]
            await assert_no_actor_crashed(self._doors[name])
            assert await self._site.stop(name) == 0
            await self._site.start(name, after)
        seen = self.answers
        await wait_until(lambda: self.answers > seen + 10 * _CALLERS)

    async def _balance(self) -> None:
        """As a Kubernetes service: requests go to replicas whose readiness probe succeeds."""
        while not self._over:
            for name, door in self._doors.items():
                try:
                    ready = (await door.get("/readyz")).status == 200
                except aiohttp.ClientError:
                    ready = False
                (self._ready.add if ready else self._ready.discard)(name)
            # As often as a readiness probe.
            await anyio.sleep(_PROBE_SECONDS)

    async def _call(self, path: str, body: Mapping[str, object]) -> Answer:
        """One request, to one ready replica after the other until one answers it."""
        for _ in range(_MOST_TRIES):
            ready = sorted(self._ready) or list(REPLICAS)
            door = self._doors[ready[next(self._turns) % len(ready)]]
            try:
                answer = await door.request("POST", path, json=body)
            except aiohttp.ClientError as error:
                self.tries[type(error).__name__] += 1
            else:
                if answer.status != 503:
                    return answer
                self.tries[str(answer.status)] += 1
            # As a caller that tries again.
            await anyio.sleep(_RETRY_SECONDS)
        raise AssertionError(f"no answer in {_MOST_TRIES} tries: {self.tries}")

    async def _tell(self, events: list[Told], *, quickly: bool = False) -> None:
        for start in range(0, len(events), _CHUNK):
            chunk = events[start : start + _CHUNK]
            for one in chunk:
                self._bounds.sending(one)
            sent = await self._site.platform.send(*(one.event for one in chunk))
            for one, where in zip(chunk, sent, strict=True):
                self._bounds.lies(one, (where.topic, where.partition, where.offset))
                self._events.append((one, Position(where.topic, where.partition, where.offset)))
            if not quickly:
                # Events come evenly.
                await anyio.sleep(_PAUSE_SECONDS * _CHUNK)

    async def _ask(self, worker: int) -> None:
        chance = Random(worker)
        while not self._told:
            await self._ask_about(chance.choice(self._batches))
            # Callers who never pause would measure the machine.
            await anyio.sleep(_PAUSE_SECONDS)

    async def _ask_about(self, batch: str) -> None:
        """At least what was durable before the request, at most what was sent before its answer."""
        request = f"request-{uuid.uuid4()}"
        at_least = self._bounds.at_least(batch)
        body = {"batch_id": batch, "requested_pipeline": PIPELINE, "correlation_id": request}
        answer = await self._call("/internal/v1/pipelines/define", body)
        assert answer.status == 200, answer.body
        pruned = frozenset(answer.json["pruned_phases"])
        assert at_least <= pruned <= self._bounds.at_most(batch), (batch, at_least, pruned)
        self._bounds.show(batch, pruned)
        self._owed |= {(as_uuid(request), batch, phase) for phase in pruned}
        self.answers += 1

    async def _report(self) -> None:
        """Report a phase of every second batch."""
        for batch in self._batches[::2]:
            delta = self._bounds.reporting(batch, time.time_ns() // 1000)
            body = {"batch_id": batch, "phase_name": REPORTED, "success": True}
            answer = await self._call("/internal/v1/phases/complete", body)
            assert answer.status == 200, answer.body
            self._bounds.reported(batch, delta)
            self.reports += 1
            # The same.
            await anyio.sleep(10 * _PAUSE_SECONDS)

    async def _watch(self) -> None:
        while not self._over:
            await self._look()
            # Offsets are sampled: nobody tells when they move.
            await anyio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """What is committed is durable, and has to show."""
        sent = list(self._bounds.under_way)
        behind = await self._site.platform.uncommitted(GROUP)
        for topic, partition, offset in sent:
            committed, _ = behind.get((topic, partition), (offset + 1, 0))
            self._bounds.committed(topic, partition, committed or 0)

    async def _check(self) -> None:
        for batch in self._batches:
            assert self._bounds.at_least(batch) == self._bounds.at_most(batch)
            for _ in REPLICAS:
                await self._ask_about(batch)
        await wait_until(self._announced, description="each pruned phase is announced")
        assert {len(ids) for ids in (await self._event_ids()).values()} == {1}
        for topic in topics.CONSUMED:
            assert await self._site.platform.messages(topics.dead_letter_topic(topic)) == []
        for door in self._doors.values():
            await assert_no_actor_crashed(door)
        await self._check_redis()
        if self._site.variables.get("BCS_DATABASE_URL"):
            await wait_until(self._nothing_queued, description="nothing waits for PostgreSQL")
            async with archive_in(self._site.database) as archive:
                await self._check_archive(archive)

    async def _check_redis(self) -> None:
        gateway = RedisGateway(
            f"redis://{self._site.redis.address}/0",
            max_connections=2,
            deadline_seconds=5,
            breaker_failures=9,
            breaker_open_seconds=1,
        )
        store = RedisStateStore(gateway, law=LAW, key_prefix="bcs:", ttl_seconds=3600)
        try:
            self._has_all({batch: await store.state(batch) for batch in self._batches}, "Redis")
        finally:
            await gateway.aclose()

    async def _check_archive(self, archive: PostgresArchive) -> None:
        self._has_all({batch: await archive.state(batch) for batch in self._batches}, "the archive")
        found = Counter[Position | None]()
        for batch in self._batches:
            before = None
            while page := await archive.history(batch, before=before, limit=_PAGE):
                found.update(kept.entry.position for kept in page if isinstance(kept.entry, FactsRecorded))
                before = page[-1].number
        for _, position in self._events:
            assert found[position] == 1, f"the history has {position} {found[position]} times"

    def _has_all(self, states: Mapping[str, BatchState], where: str) -> None:
        for one, position in self._events:
            assert states[one.batch].merge(one.delta).empty, f"{position} is not in {where}"
        for batch in self._batches[::2]:
            assert REPORTED in states[batch].reports, f"the report of {batch} is not in {where}"

    async def _nothing_queued(self) -> bool:
        waiting = [await door.metric("bcs_archive_backlog") for door in self._doors.values()]
        return waiting == [0.0] * len(REPLICAS)

    async def _announced(self) -> bool:
        return self._owed <= (await self._event_ids()).keys()

    async def _event_ids(self) -> dict[tuple[str, str, str], set[str]]:
        ids: dict[tuple[str, str, str], set[str]] = {}
        for one in values(await self._site.platform.messages(topics.PHASE_SKIPPED)):
            data = one["data"]
            ids.setdefault((data["correlation_id"], data["batch_id"], data["phase_name"]), set()).add(one["event_id"])
        return ids


async def assert_no_actor_crashed(door: Orchestrator) -> None:
    """No actor of a replica was started again."""
    restarts = [labels for name, labels, value in await door.samples("bcs_actor_restarts_total") if value]
    assert restarts == []


async def roll(site: Site, former: Path, batches: int) -> RollingUpgrade:
    """Play it at a site."""
    rollout = RollingUpgrade(site, former, batches)
    await rollout.play()
    return rollout
