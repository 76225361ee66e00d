"""Two replicas of BCS under load while their Redis fails over: what was sent, and every answer that came back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

ESSAYS = ["e1", "e2", "e3"]
REQUEST_SECONDS = 3.0
# Beside the deadline of a request: this machine is busy, and the caller is in the same process.
SLACK_SECONDS = 1.0
_PAUSE_SECONDS = 0.01
_CATCH_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Asked:
    """One request and its answer, with the times of the monotonic clock.

    :param seconds: how long it took, without the time for which the caller itself was held up.
    """

    batch: str
    began_at: float
    ended_at: float
    seconds: float
    answer: Answer


@dataclass
class FailoverLoad:
    """Sends events and asks both replicas, without a pause.

    Of two batches one is completed and the other lacks an essay for ever, so each answer can be right or wrong.

    :ivar completed_at: when the last event of a completed batch was about to be sent.
    """

    replicas: list[RunningService]
    platform: Platform
    sent: list[str] = field(default_factory=list)
    completed_at: dict[str, float] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    _ended: anyio.Event = field(default_factory=anyio.Event)
    _stops: bool = False

    async def run(self, prefix: str) -> None:
        """Send and ask until `stop`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, prefix)
            for number in range(2):
                for replica in self.replicas:
                    tasks.start_soon(self._ask, replica, number)
        self._ended.set()

    async def stop(self) -> None:
        """End the load, while the replicas run on. What was begun is ended: the platform counts what it sent."""
        self._stops = True
        await self._ended.wait()

    async def _send(self, prefix: str) -> None:
        while not self._stops:
            batch = f"{prefix}-{len(self.sent)}"
            essays = ESSAYS if len(self.sent) % 2 == 0 else ESSAYS[1:]
            self.sent.append(batch)
            await self.platform.send(registered(batch, ESSAYS), *(spellchecked(batch, one) for one in essays[1:]))
            if essays == ESSAYS:
                self.completed_at[batch] = time.monotonic()
            await self.platform.send(spellchecked(batch, essays[0]))
            # Events come evenly.
            await anyio.sleep(_PAUSE_SECONDS)

    async def _ask(self, replica: RunningService, number: int) -> None:
        """Ask about batches new and old."""
        async with Orchestrator(replica.base, keep_alive=True) as orchestrator:
            while not self._stops:
                if self.sent:
                    batch = self.sent[-1 - (number * 7 + len(self.asked)) % min(len(self.sent), 50)]
                    began_at, watch = time.monotonic(), Stopwatch()
                    answer = await orchestrator.define(batch)
                    self.asked.append(Asked(batch, began_at, time.monotonic(), watch.seconds, answer))
                # Callers who never pause would measure the machine.
                await anyio.sleep(_PAUSE_SECONDS)

    def refused_after(self, moment: float) -> list[Asked]:
        """The requests that began after a time and were refused."""
        return [one for one in self.asked if one.began_at > moment and one.answer.status != 200]

    def assert_answers(self) -> None:
        """Check that every request was answered in time, with a right answer or with a 503 that may be repeated."""
        for one in self.asked:
            assert one.answer.status in (200, 503), one
            assert one.seconds < REQUEST_SECONDS + SLACK_SECONDS, one
            if one.answer.status == 503:
                assert one.answer.headers["Retry-After"], one
            elif "spellcheck" not in one.answer.json["final_pipeline"]:
                assert self.completed_at.get(one.batch, one.ended_at + 1) < one.ended_at, one
        assert [one for one in self.asked if one.answer.status == 200]

    def assert_no_answer_takes_back(self) -> None:
        """Check that no answer lacks what an earlier one, of either replica, has said is complete."""
        said_at: dict[str, float] = {}
        for one in sorted(self.asked, key=lambda one: one.ended_at):
            if one.answer.status == 200 and "spellcheck" not in one.answer.json["final_pipeline"]:
                said_at.setdefault(one.batch, one.ended_at)
        for one in self.asked:
            if one.answer.status == 200 and said_at.get(one.batch, one.began_at) < one.began_at:
                assert "spellcheck" not in one.answer.json["final_pipeline"], one

    async def assert_nothing_is_lost(self) -> None:
        """Wait until both replicas have read all events, and check what they say about each batch."""
        await wait_until(lambda: self.platform.caught_up(self.replicas[0].group), _CATCH_UP_SECONDS)
        for replica in self.replicas:
            assert replica.restarted() == []
            async with Orchestrator(replica.base, keep_alive=True) as orchestrator:
                for batch in self.sent:
                    expected = [*([] if batch in self.completed_at else ["spellcheck"]), "ai_feedback"]
                    assert await orchestrator.to_run(batch) == expected, batch


@asynccontextmanager
async def two_replicas_under_load(prefix: str, **settings: object) -> AsyncIterator[FailoverLoad]:
    """Start both replicas and the load. `FailoverLoad.stop` ends the load, the end of the block the replicas.

    :param prefix: of the batches, and the name of the consumer group.
    :param settings: of both replicas.
    """
    common = {
        "redis_key_prefix": f"{prefix}:",
        "kafka_consumer_group_id": prefix,
        "request_deadline_seconds": REQUEST_SECONDS,
        "database_deadline_seconds": REQUEST_SECONDS - 0.5,
        # Registrations come on a topic of their own, so they may come later than what is completed.
        "require_registration": True,
        **settings,
    }
    async with (
        running_service(instance_name="first", **common) as first,
        running_service(instance_name="second", **common) as second,
        Platform(str(settings["kafka_bootstrap_servers"])) as platform,
    ):
        load = FailoverLoad([first, second], platform)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run, prefix)
            await wait_until(lambda: len([one for one in load.asked if one.answer.status == 200]) > 50)
            yield load
            await load.stop()
