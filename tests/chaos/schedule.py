"""What goes wrong, drawn from a seed: actors are killed one after another, and now and then something worse happens."""

import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import aiohttp
import anyio

from bcs.devtools.servers.embedded import EmbeddedServer
from tests.chaos.stage import Stage, batches_at_work, kill_actor
from tests.support.service import BcsProcess
from tests.support.waiting import wait_until

ACTORS = ["http", "intake", "batches", "metrics", "publisher"]
A_BATCH = "a batch's"
KINDS = [*ACTORS, A_BATCH]
# The part of the events during which a kind is killed, where that is not all of them.
_SHARE = {"intake": 0.7}
_DUE_SECONDS = 300
_BREATH_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.1
_FROZEN_SECONDS = 0.7  # longer than any deadline for Redis, shorter than a session
_SLOW_SECONDS = 0.02
_LOST_REPLIES = 5


class Killings:
    """Kills so many actors of each kind, at random moments; those of a batch while it works.

    :param done: kind to how many were killed.
    :param published: the part of the events that were told, from 0.0 to 1.0.
    """

    def __init__(self, stage: Stage, of_each_kind: int, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.published = 0.0
        self._stage, self._of_each_kind, self._seed = stage, of_each_kind, seed

    def allow(self, part: float) -> bool:
        """Whether the killings have gone so far that this part of the events may have been told.

        The intake's come to their end early: what another actor lost would come again with the next intake, and so
        would be overlooked.
        """
        return all(self.done[kind] / self._of_each_kind >= min(part / _SHARE.get(kind, 1.0), 1.0) for kind in KINDS)

    async def run(self) -> None:
        """Kill, until it is enough."""
        async with anyio.create_task_group() as group:
            for kind in KINDS:
                group.start_soon(self._kill_all, kind)

    async def _kill_all(self, kind: str) -> None:
        chance = Random(f"{self._seed} {kind}")
        while self.done[kind] < self._of_each_kind:
            # The pauses are the schedule itself; also those that come while the actor is still away: then it is
            # killed as soon as it is back, at its start.
            await anyio.sleep(chance.random() * _LONGEST_PAUSE_SECONDS)
            await wait_until(partial(self._is_due, kind), _DUE_SECONDS)
            process = chance.choice(self._stage.replicas)
            kill = kill_a_batch if kind == A_BATCH else kill_actor
            if kind == "intake":
                await wait_until(self._stage.may_lose_members, _DUE_SECONDS, ignoring=(aiohttp.ClientError,))
            if kind == A_BATCH:
                # Else the actor's work would be done before it can be found and killed.
                self._stage.redis.delay(_SLOW_SECONDS)
            while not await kill(process, kind):
                # It is away just now: there is nothing to wait for but its return, which nobody tells.
                await anyio.sleep(_BREATH_SECONDS)
                process = chance.choice(self._stage.replicas)
            if kind == A_BATCH:
                self._stage.redis.delay(0)
            self.done[kind] += 1

    def _is_due(self, kind: str) -> bool:
        return self.published >= self.done[kind] / self._of_each_kind * _SHARE.get(kind, 1.0)


async def kill_a_batch(process: BcsProcess, _: str) -> bool:
    """Kill the actor of a batch that works at this moment."""
    for path in await batches_at_work(process):
        if await kill_actor(process, path):
            return True
    return False


class Disasters:
    """Connections cut, replies lost, servers and processes that freeze or die.

    :param kinds: all that may happen, by name.
    :param happened: which of them did, and how often.
    """

    def __init__(self, stage: Stage, seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self._stage = stage
        self._chance = Random(f"{seed} disasters")
        self._turns = list[str]()
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "connections to Redis cut": stage.redis.cut,
            "connections to Kafka cut": stage.kafka.cut,
            "replies to commits lost": self._lose_replies,
            "Redis slow": self._slow_redis,
            "Redis frozen": self._freeze_redis,
            "Kafka frozen": partial(self._freeze, stage.broker),
            "process frozen": self._freeze_process,
            "process killed": self._kill_process,
        }

    async def strike(self) -> None:
        """Let one of them happen, and end: none again before each has had its turn."""
        if not self._turns:
            self._turns = self._chance.sample(list(self.kinds), len(self.kinds))
        kind = self._turns.pop()
        await self.kinds[kind]()
        self.happened[kind] += 1

    async def _lose_replies(self) -> None:
        self._stage.redis.drop_replies(b"EVALSHA", _LOST_REPLIES)

    async def _slow_redis(self) -> None:
        self._stage.redis.delay(_SLOW_SECONDS)
        # The faults are their lengths.
        await anyio.sleep(_FROZEN_SECONDS)
        self._stage.redis.delay(0)

    async def _freeze_redis(self) -> None:
        await self._freeze(self._chance.choice(self._stage.redis.servers))

    async def _freeze(self, server: EmbeddedServer) -> None:
        server.freeze()
        # The fault is its length.
        await anyio.sleep(_FROZEN_SECONDS)
        server.thaw()

    async def _freeze_process(self) -> None:
        process = self._chance.choice(self._stage.replicas)
        process.signal(signal.SIGSTOP)
        # The fault is its length.
        await anyio.sleep(_FROZEN_SECONDS)
        process.signal(signal.SIGCONT)

    async def _kill_process(self) -> None:
        await wait_until(self._stage.may_lose_members, _DUE_SECONDS, ignoring=(aiohttp.ClientError,))
        await self._stage.relaunch(self._chance.randrange(len(self._stage.replicas)))
