"""Children that wait for their turn, because a dynamic supervisor runs only so many at a time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from bcs.supervision import Backoff, DynamicSupervisor, State
from tests.supervision.harness import PATIENCE_SECONDS, Context, question, running, until
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


class Counted(Workers):
    """Workers that note how many of them ran at a time, and in which order they began."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.running, self.most = 0, 0
        self.began: list[str] = []

    async def start(self, context: Context) -> None:
        self.began.append(context.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await super().start(context)
        finally:
            self.running -= 1


@guarantees(
    "With `max_running`, no more children run at a time; the others wait for their turn, first come, first served",
    topic="Dynamic supervisors",
)
async def test_no_more_children_run_at_a_time_than_the_limit() -> None:
    workers = Counted(max_running=3)
    keys = [str(number) for number in range(20)]
    async with running(workers.root):
        workers.hold(*keys)
        for key in keys:
            workers.supervisor.deliver_nowait(key, key)
        await anyio.wait_all_tasks_blocked()
        assert sorted(workers.began) == keys[:3]
        assert [node.state for node in workers.supervisor.snapshot().children][2:4] == [State.RUNNING, State.IDLE]
        workers.release()
        await until(lambda: workers.alive == 0)
    assert workers.most == 3
    assert sorted(workers.began) == sorted(keys)
    assert len(workers.got) == 20


async def test_a_child_that_waits_for_its_turn_collects_envelopes() -> None:
    workers = Counted(max_running=1)
    async with running(workers.root):
        workers.hold("first")
        workers.supervisor.deliver_nowait("first", 0)
        await until(lambda: workers.began)
        for number in range(3):
            workers.supervisor.deliver_nowait("second", number)
        workers.release()
        await until(lambda: workers.alive == 0)
    assert workers.began == ["first", "second"]
    assert workers.got == [("first", 0), ("second", 0), ("second", 1), ("second", 2)]


@guarantees("An ask starts its child at once, also if `max_running` children run", topic="Dynamic supervisors")
@pytest.mark.parametrize("waits", [False, True])
async def test_an_ask_does_not_wait_for_the_turn_of_its_child(waits: bool) -> None:
    workers = Counted(max_running=1)
    async with running(workers.root):
        workers.hold("first")
        workers.supervisor.deliver_nowait("first", 0)
        await until(lambda: workers.began)
        if waits:
            workers.supervisor.deliver_nowait("second", 1)
        assert await workers.supervisor.ask("second", question("x"), PATIENCE_SECONDS) == "second"
        workers.release()
        await until(lambda: workers.alive == 0)
    assert workers.began == ["first", "second"]


async def test_a_child_that_crashed_gives_its_turn_away_and_gets_another() -> None:
    workers = Counted(max_running=1, max_deliveries=2)
    async with running(workers.root):
        workers.supervisor.deliver_nowait("crashes", "poison")
        workers.supervisor.deliver_nowait("waits", 1)
        await until(lambda: workers.alive == 0)
    assert workers.began[:2] == ["crashes", "waits"]
    assert (workers.got, workers.given_up, workers.most) == ([("waits", 1)], ["poison"], 1)


async def test_a_child_in_its_back_off_takes_no_turn() -> None:
    workers = Counted(max_running=1, backoff=Backoff(300.0, 1.0, 300.0), shutdown_seconds=0.01)
    async with running(workers.root):
        workers.supervisor.deliver_nowait("crashes", "poison")
        workers.supervisor.deliver_nowait("works", 1)
        await until(lambda: workers.got)
    assert workers.got == [("works", 1)]


@guarantees("A child that waits for its turn is served before a stop ends", topic="Shutdown budgets")
async def test_a_stop_serves_the_children_that_wait_for_their_turn() -> None:
    workers = Counted(max_running=1)
    async with running(workers.root) as tree:
        for number in range(10):
            workers.supervisor.deliver_nowait(str(number), number)
        tree.stop.set()
    assert tree.in_time
    assert workers.got == [(str(number), number) for number in range(10)]
    assert workers.most == 1


async def test_children_that_wait_for_their_turn_are_served_by_the_next_run() -> None:
    workers = Counted(max_running=1)
    async with running(workers.root):
        workers.hold("0")
        for number in range(5):
            workers.supervisor.deliver_nowait(str(number), number)
        await until(lambda: workers.began)
        assert workers.root.kill("workers")
        await until(lambda: workers.began == ["0", "0"])
        workers.release()
        await until(lambda: workers.alive == 0)
    assert [message for _, message in workers.got] == [0, 1, 2, 3, 4]


@guarantees("An unresponsive child takes no turn from the others", topic="Dynamic supervisors")
async def test_an_unresponsive_child_does_not_count() -> None:
    workers = Counted(max_running=1, kill_grace_seconds=0.01)
    stubborn = anyio.Event()

    async def wait(_: Any) -> None:
        with anyio.CancelScope(shield=True):
            await stubborn.wait()

    serve, workers.supervisor._start = workers.supervisor._start, None  # type: ignore[assignment]

    async def start(context: Context) -> None:
        await (wait(context) if context.name == "stubborn" and context.incarnation == 1 else serve(context))

    workers.supervisor._start = start
    async with running(workers.root):
        workers.supervisor.deliver_nowait("stubborn", 0)
        workers.supervisor.deliver_nowait("works", 1)
        await anyio.wait_all_tasks_blocked()
        assert workers.got == []
        workers.supervisor.kill("stubborn")
        await until(lambda: workers.got == [("works", 1)])
        assert not workers.supervisor.healthy
        stubborn.set()
        await until(lambda: workers.alive == 0)
    assert workers.got == [("works", 1), ("stubborn", 0)]


@guarantees("A child that reports a long wait gives its turn to another child", topic="Dynamic supervisors")
async def test_a_child_that_gives_its_turn_does_not_count() -> None:
    workers = Counted(max_running=1)
    serve, workers.supervisor._start = workers.supervisor._start, None  # type: ignore[assignment]

    async def start(context: Context) -> None:
        if context.name.startswith("waits"):
            context.give_turn()
            context.give_turn()
        await serve(context)

    workers.supervisor._start = start
    keys = ["waits-1", "waits-2", "works-1", "works-2"]
    async with running(workers.root):
        workers.hold(*keys)
        for key in keys:
            workers.supervisor.deliver_nowait(key, key)
            await anyio.wait_all_tasks_blocked()
        assert workers.alive == 4
        assert workers.running == 3
        workers.supervisor.kill("waits-1")
        await anyio.wait_all_tasks_blocked()
        assert workers.running == 2
        workers.release()
        await until(lambda: workers.alive == 0)
    assert sorted(message for _, message in workers.got) == keys


async def test_children_that_never_await_do_not_block_other_tasks() -> None:
    turns = 0

    async def never_awaits(context: Context) -> None:
        context.ack(context.receive_nowait())

    pool: DynamicSupervisor[int] = DynamicSupervisor(
        "pool", never_awaits, mailbox_capacity=1, max_children=1000, max_running=1
    )
    for number in range(1000):
        pool.deliver_nowait(str(number), number)
    async with running(pool):
        while pool.snapshot().total_children:
            await checkpoint()
            turns += 1
    assert turns > 1000 // 16 - 10  # a few are over before the tree has started
