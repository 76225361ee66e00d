"""The orchestrator's part of a schedule: requests of which it is known what must be answered, and announced."""

import uuid
from collections import Counter

import aiohttp
import anyio

from bcs.wire import topics
from tests.support.events import spellchecked
from tests.support.kafka import Platform, uuids, values
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

# Callers who never pause would measure the machine, and leave it no time for what is tested.
_PAUSE_SECONDS = 0.05


class Callers:
    """The orchestrator's requests about batches of which it is known what must be answered, until it is enough.

    :param bases: where the replicas listen.
    :param done: a batch whose spellcheck is complete: every answer prunes and announces it.
    :param undone: a batch with a failed essay: no answer ever may.
    """

    def __init__(self, bases: list[str], name: str) -> None:
        self.bases = bases
        self.done, self.undone = f"{name}-done", f"{name}-undone"
        self.asked: set[str] = set()
        self.pruned: set[str] = set()
        self.recorded: list[str] = []
        self.statuses: Counter[int | str] = Counter()
        self.enough = False

    async def prepare(self, platform: Platform) -> None:
        """Tell the events about the two batches."""
        await platform.send(spellchecked(self.done, "essay"), spellchecked(self.undone, "essay", "failed"))

        async def known() -> bool:
            async with Orchestrator(self.bases[0]) as orchestrator:
                self.asked.add("prepare")
                done = await orchestrator.to_run(self.done, correlation_id="prepare")
                undone = await orchestrator.define(self.undone)
                assert undone.status == 200  # not so while the start of several services makes Redis slow
                return done == ["ai_feedback"] and undone.json["decisions"][0]["reason"] == "essays_failed"

        await wait_until(known, 60, ignoring=(aiohttp.ClientError, AssertionError))

    async def ask(self, worker: int) -> None:
        """Requests of one kind after another, each on a connection of its own."""
        number = 0
        while not self.enough:
            number += 1
            base = self.bases[(worker + number) % len(self.bases)]
            async with Orchestrator(base) as orchestrator:
                await self._ask_once(orchestrator, f"{self.done}-{worker}-{number}-{uuid.uuid4().hex[:8]}")
            # Callers who never pause would measure the machine.
            await anyio.sleep(_PAUSE_SECONDS)

    async def _ask_once(self, orchestrator: Orchestrator, request: str) -> None:
        try:
            self.asked.add(request)
            # Asked twice, as a caller does who got no answer in time: that announces nothing new.
            for _ in range(2):
                answer = await orchestrator.define(self.done, correlation_id=request)
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    assert answer.json["pruned_phases"] == ["spellcheck"], answer.json
                    self.pruned.add(request)
            answer = await orchestrator.define(self.undone, correlation_id=f"undone-{request}")
            self.statuses[answer.status] += 1
            if answer.status == 200:
                assert answer.json["final_pipeline"] == ["spellcheck", "ai_feedback"], answer.json
            answer = await orchestrator.complete(f"{request}-reported", "spellcheck")
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.recorded.append(f"{request}-reported")
        except TimeoutError:
            self.statuses["hung"] += 1
        except aiohttp.ClientConnectorError:
            self.statuses["refused"] += 1
        except aiohttp.ClientError:
            self.statuses["reset"] += 1

    async def assert_announced(self, platform: Platform) -> int:
        """Every pruning that was told is announced; all copies have one id; nothing else is announced.

        :returns: how many announcements there are, copies included.
        """

        async def announced() -> bool:
            records = values(await platform.messages(topics.PHASE_SKIPPED, self.done))
            return uuids(self.pruned) <= {record["data"]["correlation_id"] for record in records}

        await wait_until(announced, 60, description="every pruning that a caller was told of is announced")
        records = values(await platform.messages(topics.PHASE_SKIPPED))
        ids: dict[str, set[str]] = {}
        for record in records:
            data = record["data"]
            assert (data["batch_id"], data["phase_name"]) == (self.done, "spellcheck"), "announced, and never pruned"
            ids.setdefault(data["correlation_id"], set()).add(record["event_id"])
        assert ids.keys() <= uuids(self.asked), "announced, and nobody had asked"
        assert all(len(copies) == 1 for copies in ids.values()), "every copy carries the same event id"
        assert len({one for copies in ids.values() for one in copies}) == len(ids), "and no other event does"
        return len(records)
