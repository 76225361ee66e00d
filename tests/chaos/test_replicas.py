"""A replica sleeps past its session, and at a release another one is killed; nobody loses anything, nobody does harm.

When it sleeps, one of its commits and one of its writes are on the way. They arrive late: others have its partitions by
then, and have done its work again.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random

import anyio
import pytest

from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.wire import topics
from tests.chaos.figures import Note
from tests.chaos.history import History
from tests.chaos.replica_crew import SETTLED_SECONDS, Crew, crew
from tests.chaos.replica_ledger import Commit
from tests.chaos.replica_tap import Hold, Writes, between
from tests.support.kafka import PARTITIONS
from tests.support.service import BcsProcess
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ALL_PARTITIONS = {(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)}
ROUNDS, EVENTS = (4, 6_000) if IN_FULL else (1, 200)
# How many events an exchange takes is up to the machine; none of them shall find the traffic over.
SPARE_EVENTS = 2_000
WRITES_SECONDS = 2.0
# Whether another one is killed too. At every commit one process is, in test_crash_points.
PLAYS = [
    (2, False, 2),
    pytest.param(3, True, 1, marks=pytest.mark.release),
    pytest.param(2, True, 2, marks=pytest.mark.release),
]


@dataclass
class Play:
    """One replica that falls asleep, again and again, beside others that are killed meanwhile, or afterwards.

    :param late: the commits of the sleeper that came too late.
    """

    hands: Crew
    writes: Writes
    sleeper: BcsProcess
    replicas: int
    kills: bool
    chance: Random

    def __post_init__(self) -> None:
        self.late: list[Commit] = []
        self.allowed = 0.0
        self.over = False
        self._share = EVENTS / ROUNDS / 10

    async def play(self) -> None:
        """Play all rounds."""
        for _ in range(ROUNDS):
            await self._flow()
            await self._round()
        self.over = True
        self.allowed = inf

    def enough(self) -> bool:
        """Whether no more events are needed."""
        return self.over and self.hands.sent >= EVENTS

    async def _round(self) -> None:
        hands = self.hands
        commit, write = await self._fall_asleep()
        async with anyio.create_task_group() as group:
            if self.kills and self.replicas > 2:
                await self._kill(group)
            await wait_until(self._inherited, SETTLED_SECONDS, description="the others have all partitions")
            await self._flow()
            asked = len(hands.ledger.commits)
            write.release()
            commit.release()
            self.late += await wait_until(partial(self._answered, commit.port, asked), SETTLED_SECONDS)
            self.sleeper.signal(signal.SIGCONT)
            await hands.at_work(self.sleeper)
            if self.kills and self.replicas == 2:
                await self._flow()
                await self._kill(group)

    async def _fall_asleep(self) -> tuple[Hold, Hold]:
        """Stop the sleeper while a commit and a write of its are on the way.

        :returns: what holds these back.
        """
        self.allowed = inf
        while True:
            await self.hands.settled()
            commit, write = Hold(), Hold()
            self.hands.hold_commit(self.sleeper, commit)
            with anyio.fail_after(SETTLED_SECONDS):
                await commit.caught.wait()
            self.writes.hold = write
            with anyio.move_on_after(WRITES_SECONDS):
                await write.caught.wait()
                self.sleeper.signal(signal.SIGSTOP)
                self.allowed = self.hands.sent
                return commit, write
            # A commit on the occasion of a rebalance, after which it has nothing to write.
            self.writes.hold = None
            write.release()
            commit.release()

    async def _kill(self, group: anyio.abc.TaskGroup) -> None:
        """Kill one of the others while it has work in hand; as in a deployment, there is another one at once."""
        victim = self.chance.choice([replica for replica in self.hands.replicas if replica is not self.sleeper])
        self.allowed = inf
        await wait_until(lambda: self.hands.in_hand(victim) > 0, SETTLED_SECONDS)
        await self.hands.kill(victim)
        self.allowed = self.hands.sent
        group.start_soon(self.hands.join)

    async def _flow(self) -> None:
        """Let events flow for a while, which is drawn."""
        self.allowed = self.hands.sent + self.chance.random() * self._share
        await wait_until(lambda: self.hands.sent >= self.allowed, SETTLED_SECONDS)

    def _inherited(self) -> bool:
        owned = [self.hands.partitions_of(replica) for replica in self.hands.replicas if replica is not self.sleeper]
        return set().union(*owned) == ALL_PARTITIONS

    def _answered(self, port: int, asked: int) -> list[Commit]:
        commits = [commit for commit in self.hands.ledger.commits[asked:] if commit.port == port]
        return [commit for commit in commits if commit.taken is not None]


@pytest.mark.parametrize(("replicas", "kills", "seed"), PLAYS)
async def test_one_that_sleeps_past_its_session_takes_nothing_with_it(
    tmp_path: Path,
    private_valkey: EmbeddedServer,
    free_port: int,
    unique_name: Callable[[str], str],
    note_figure: Note,
    replicas: int,
    kills: bool,
    seed: int,
) -> None:
    began = time.monotonic()
    history, writes = History(seed, EVENTS + SPARE_EVENTS, "batch"), Writes()
    redis_url = f"redis://{private_valkey.address}"
    async with (
        between(free_port, private_valkey.port, writes.conversation),
        crew(tmp_path, history, redis_url, unique_name("group")) as hands,
    ):
        async with anyio.create_task_group() as first:
            first.start_soon(hands.join, f"redis://{HOST}:{free_port}")
            for _ in range(replicas - 1):
                first.start_soon(hands.join)
        [sleeper] = [replica for replica in hands.replicas if str(free_port) in replica.environment["BCS_REDIS_URL"]]
        play = Play(hands, writes, sleeper, replicas, kills, Random(seed))
        async with anyio.create_task_group() as group:
            group.start_soon(play.play)
            group.start_soon(hands.publish, lambda: play.allowed, play.enough)
        await hands.assert_nothing_lost()
    assert len(play.late) >= ROUNDS, "in each round one was on its way when its sender fell asleep"
    assert hands.ledger.read_again > 0, "its work was done again by others"
    for commit in play.late:
        assert commit.revoked == commit.offsets.keys(), "all of it was someone else's by then"
        assert commit.taken == frozenset()
    note_figure(
        11,
        f"seed {seed}: {replicas} replicas, {ROUNDS} times one slept past its session"
        f"{' and another was killed' if kills else ''}, {hands.sent} events, 0 lost; {hands.ledger.figures()}; "
        f"{time.monotonic() - began:.0f} s",
    )
