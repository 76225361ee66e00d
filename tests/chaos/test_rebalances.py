"""Row 11: replicas join, leave and die while events flow; none is lost, and none is committed without a right to.

Who comes and goes, and when, is drawn from a seed. Every request to commit is overheard on its way to the broker: the
events before it are in the store by then, and one for a partition that was revoked is refused.
"""

import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from random import Random

import anyio
import pytest

from tests.chaos.figures import Note
from tests.chaos.history import History
from tests.chaos.replica_crew import SETTLED_SECONDS, Crew, crew
from tests.chaos.sizes import SIZES
from tests.support.waiting import wait_until

# At every commit: test_replicas, which overhears commits just so, and tests/kafka/test_groups.py.
pytestmark = [pytest.mark.anyio, pytest.mark.release]

TURNS = ["join", "join", "go", "go"]  # of one that is there from the start: two, three, two, one


class Moves:
    """So many joins and leaves, in turns; of those who leave, every other one is killed.

    :param done: how each was made.
    """

    def __init__(self, moves: int, events: int, seed: int) -> None:
        self.done: list[str] = []
        self._chance = Random(seed)
        self._turns = TURNS * (moves // len(TURNS))
        self._ways = iter(self._chance.sample(["killed", "left"] * (moves // 4), moves // 2))
        # Some fall close together: then the group has not settled when the next one comes.
        self._moments = sorted(self._chance.uniform(0.05, 0.8) * events for _ in range(moves))
        self._room = events / moves / 4
        self._allowed = 0.0
        self._joining = 0

    def gate(self) -> float:
        """So many events may be told by now: none of the moves shall find the traffic over."""
        return self._allowed

    async def make(self, hands: Crew) -> None:
        """Make all of them, each at its moment; who joins may still be on the way when another one goes."""
        async with anyio.create_task_group() as group:
            for turn, moment in zip(self._turns, self._moments, strict=True):
                self._allowed = max(self._allowed, moment + self._room)
                await wait_until(lambda moment=moment: hands.sent >= moment, SETTLED_SECONDS)  # type: ignore[misc]
                if turn == "join":
                    group.start_soon(self._join, hands)
                else:
                    await self._go(hands, next(self._ways))
        self._allowed = inf

    async def _join(self, hands: Crew) -> None:
        self._joining += 1
        await hands.join()
        self._joining -= 1
        self.done.append("joined")

    async def _go(self, hands: Crew, way: str) -> None:
        await wait_until(lambda: len(hands.replicas) > 1, SETTLED_SECONDS)
        if way == "killed":
            # Tansu waits for ever for a leader that died before it told the others their partitions. Deaths in the
            # middle of a rebalance are tried on Apache Kafka, in tests/kafka.
            await wait_until(lambda: not self._joining, SETTLED_SECONDS)
            await hands.settled()
        goes = self._chance.choice(hands.replicas)
        # Not in a lull: it has read what it has not committed yet.
        self._allowed = inf
        await wait_until(lambda: hands.in_hand(goes) > 0, SETTLED_SECONDS)
        await (hands.leave if way == "left" else hands.kill)(goes)
        self._allowed = hands.sent
        self.done.append(way)


@pytest.mark.parametrize("seed", [4])
async def test_replicas_that_join_leave_and_die_commit_only_what_is_theirs_and_durable(
    tmp_path: Path, redis_url: str, unique_name: Callable[[str], str], note_figure: Note, seed: int
) -> None:
    began = time.monotonic()
    history = History(seed, SIZES.rebalanced_events, "batch")
    moves = Moves(SIZES.joins_and_leaves, SIZES.rebalanced_events, seed)
    async with crew(tmp_path, history, redis_url, unique_name("group")) as hands:
        await hands.join()
        async with anyio.create_task_group() as group:
            group.start_soon(moves.make, hands)
            group.start_soon(hands.publish, moves.gate)
        await hands.assert_nothing_lost()
    assert len(moves.done) == SIZES.joins_and_leaves
    assert len(hands.ledger.generations) >= SIZES.joins_and_leaves / 2, "the group had to settle again and again"
    done = ", ".join(f"{moves.done.count(way)} {way}" for way in ("joined", "left", "killed"))
    note_figure(
        11,
        f"seed {seed}: {len(moves.done)} joins and leaves ({done}) during {hands.sent} events, 0 lost; "
        f"{hands.ledger.figures()}; {time.monotonic() - began:.0f} s",
    )
