"""How long a stop may take: on trio's clock, which jumps."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    AskTimeout,
    ChildSpec,
    Mailbox,
    RestartIntensity,
    Strategy,
    Supervisor,
)
from tests.supervision.harness import Context, Puppet, puppets, question, running
from tests.supervision.timed import ON_TRIO, PLAIN, Timed, ignore_cancellation, later
from tests.support.guarantees import guarantees

pytestmark = [pytest.mark.anyio, ON_TRIO]


@guarantees(
    "If a member is unresponsive, the other members of its group still stop; that member and the members after it "
    "start only after its end",
    topic="Strategies",
)
@guarantees("A group's back-off begins when its members have stopped, or are unresponsive", topic="Back-off")
async def test_a_group_starts_only_after_its_unresponsive_member_has_ended() -> None:
    a, c = Puppet("a"), Puppet("c")

    async def shielded(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            await ignore_cancellation(30)
        await context.wait_stopping()

    root = Supervisor(
        "root",
        [a.spec(), ChildSpec("b", shielded, shutdown_seconds=2.0), c.spec()],
        strategy=Strategy.ONE_FOR_ALL,
        backoff=PLAIN,
    )
    async with running(root):
        began = anyio.current_time()
        c.crash()
        await later(lambda: a.attempts == 2)
        assert anyio.current_time() - began == pytest.approx(2 + 1 + 1, abs=0.02)  # budget, grace, back-off
        assert c.attempts == 1
        await later(lambda: c.attempts == 2)
        assert anyio.current_time() - began == pytest.approx(30, abs=0.02)
        assert [node.restarts for node in root.snapshot().children] == [1, 1, 1]


@guarantees(
    "A member that was unresponsive before its group restarted restarts after its end, and this restart is not "
    "counted again",
    topic="Strategies",
)
async def test_an_unresponsive_member_rejoins_its_group_without_another_restart() -> None:
    _, (a, b, c) = puppets("abc")
    observer = Timed()

    async def shielded(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            await ignore_cancellation(30)
        await b.start(context)

    root = Supervisor(
        "root",
        [a.spec(), ChildSpec("b", shielded), c.spec()],
        strategy=Strategy.ONE_FOR_ALL,
        intensity=RestartIntensity(1, 1_000.0),
        backoff=PLAIN,
        observer=observer,
    )
    async with running(root) as tree:
        assert root.kill("b")
        await later(lambda: observer.of("unresponsive"))
        c.crash()
        await later(lambda: a.attempts == 2)
        await later(lambda: c.attempts == 2)
        assert not tree.ended.is_set()
        assert a.attempts == 2
        assert observer.of("restarting") == [("c", 1.0)]
        assert [node.restarts for node in root.snapshot().children] == [1, 1, 1]
    assert observer.reasons("b") == ["killed", "stopped"]


@guarantees("Each child has its own time to stop; after that it is cancelled", topic="Shutdown budgets")
@guarantees(
    "A stop waits for an unresponsive attempt only during the grace, but the run of the tree ends only when that "
    "attempt ends",
    topic="Watchdog and unresponsive attempts",
)
async def test_each_child_has_its_own_time_to_stop() -> None:
    observer = Timed()

    def stops_after(name: str, seconds: float, budget: float) -> ChildSpec:
        async def start(context: Context) -> None:
            context.ready()
            await context.wait_stopping()
            await anyio.sleep(seconds)

        return ChildSpec(name, start, shutdown_seconds=budget)

    async def shielded(context: Context) -> None:
        context.ready()
        await ignore_cancellation(60)

    children = [
        stops_after("a", 1, 5),
        ChildSpec("w", shielded, shutdown_seconds=3.0),
        stops_after("b", 100, 4),
    ]
    root = Supervisor("root", children, observer=observer, kill_grace_seconds=2.0)
    async with running(root, shutdown_seconds=1_000) as tree:
        pass
    assert observer.reasons("b") == ["shutdown timeout"]
    assert observer.reasons("a") == ["stopped"]
    assert observer.times("ended") == [4, 4 + 3 + 2 + 1, 60]
    assert tree.in_time


@guarantees(
    "The whole tree has a time to stop; after that the remaining actors are cancelled, and `run_tree` returns False",
    topic="Shutdown budgets",
)
async def test_a_stop_is_bounded_as_a_whole() -> None:
    observer = Timed()

    async def start(context: Context) -> None:
        context.ready()
        await anyio.sleep_forever()

    root = Supervisor("root", [ChildSpec(name, start, shutdown_seconds=4.0) for name in "abc"], observer=observer)
    async with running(root, shutdown_seconds=6.0) as tree:
        pass
    assert observer.times("ended") == [4, 6, 6]
    assert [reason for *_, reason, _ in observer.of("ended")] == ["shutdown timeout", "cancelled", "cancelled"]
    assert tree.in_time is False


@guarantees("The whole ask has one deadline", topic="Asks")
async def test_an_ask_has_one_deadline() -> None:
    mailbox: Mailbox[Any] = Mailbox("m", math.inf)
    began = anyio.current_time()
    with pytest.raises(AskTimeout):
        await mailbox.ask(question("x"), 12.5)
    assert anyio.current_time() - began == pytest.approx(12.5)
