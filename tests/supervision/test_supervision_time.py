"""All that depends on time, exactly: on trio's clock, which jumps. The watchdogs on real time too."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import (
    ChildSpec,
    Mailbox,
    RestartIntensity,
    State,
    Strategy,
    Supervisor,
)
from tests.supervision.harness import Boom, Context, Puppet, running
from tests.supervision.timed import ON_TRIO, PLAIN, Timed, ignore_cancellation, later
from tests.support.guarantees import guarantees

pytestmark = [pytest.mark.anyio, ON_TRIO]


@guarantees("After an attempt that was ready for long enough, the next wait is the initial one again", topic="Back-off")
@guarantees("An observer is notified of each restart and its delay, once for a group", topic="Observer")
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_restart_delays_grow_and_a_healthy_period_resets_them(strategy: Strategy) -> None:
    observer = Timed()
    lives = [0.0, 0.0, 0.0, 0.0, 9.9, 10.0, 0.0]

    async def start(context: Context) -> None:
        context.ready()
        if lives:
            await anyio.sleep(lives.pop(0))
            raise Boom
        await context.wait_stopping()

    root = Supervisor("root", [ChildSpec("a", start)], strategy=strategy, backoff=PLAIN, observer=observer)
    async with running(root, wait_started=False):
        await later(lambda: observer.started("a") == 8)
    assert [delay for _, delay in observer.of("restarting")] == [1, 2, 4, 5, 5, 1, 2]
    assert observer.times("started") == [0, 1, 3, 7, 12, 26.9, 37.9, 39.9]


@guarantees("Under one_for_one the back-off of one child delays no other restart", topic="Back-off")
async def test_one_back_off_delays_no_other_restart() -> None:
    slow, quick = Puppet("slow"), Puppet("quick")
    slow.crash_on_start = 0
    root = Supervisor("root", [slow.spec(), quick.spec()], backoff=PLAIN)
    async with running(root):
        began = anyio.current_time()
        slow.crash()
        await anyio.sleep(0.9)
        quick.crash()
        await later(lambda: slow.attempts == 2)
        assert anyio.current_time() - began == pytest.approx(1.0, abs=0.02)
        assert [node.state for node in root.snapshot().children] == [State.RUNNING, State.BACKING_OFF]
        await later(lambda: quick.attempts == 2)
        assert anyio.current_time() - began == pytest.approx(1.9, abs=0.02)


@guarantees(
    "Restarts that are older than the period no longer count",
    topic="Restart intensity and escalation",
)
async def test_restarts_spread_over_time_never_add_up_to_too_many() -> None:
    puppet = Puppet("a")
    root = Supervisor("root", [puppet.spec()], intensity=RestartIntensity(2, 30.0), backoff=PLAIN)
    async with running(root) as tree:
        for attempt in range(1, 8):
            await later(lambda: puppet.attempts == attempt)  # noqa: B023 - awaited at once
            puppet.crash()
            await anyio.sleep(15.1)
        assert not tree.ended.is_set()
        puppet.crash()
        await anyio.sleep(5)
        puppet.crash()
        await later(tree.ended.is_set)


@guarantees(
    "An attempt that is busy for too long without a heartbeat is cancelled and restarted",
    topic="Watchdog and unresponsive attempts",
)
@guarantees("An idle actor is never hung", topic="Watchdog and unresponsive attempts")
@guarantees(
    "A snapshot has each mailbox's depth (queued and unacked envelopes), its capacity, the age of its oldest "
    "envelope, and the actor's busy time",
    topic="Snapshot",
)
async def test_a_hung_attempt_is_cancelled_and_restarted() -> None:
    mailbox: Mailbox[float] = Mailbox("m", 10)
    observer = Timed()

    async def start(context: Context) -> None:
        context.ready()
        while envelopes := await context.receive():
            if context.incarnation == 1:
                await anyio.sleep(envelopes[0].message)
            context.ack(envelopes)

    root = Supervisor(
        "root", [ChildSpec("m", start, mailbox=mailbox, hang_seconds=3.0)], backoff=PLAIN, observer=observer
    )
    async with running(root):
        await anyio.sleep(100)  # while idle it is never hung
        for seconds in (2.9, 2.9, 50.0):
            mailbox.send_nowait(seconds)
        await anyio.sleep(1)
        assert root.snapshot().children[0].busy_seconds == pytest.approx(1)
        await later(lambda: mailbox.depth == 0)
    assert observer.reasons("m") == ["hung", "stopped"]
    assert observer.times("ended")[0] == pytest.approx(100 + 2.9 + 2.9 + 3.0)


@guarantees(
    "An actor that sends heartbeats is not hung; a child that never sent a heartbeat has no watchdog",
    topic="Watchdog and unresponsive attempts",
)
async def test_heartbeats_prevent_a_hang_and_no_heartbeat_means_no_watchdog() -> None:
    async def works(context: Context) -> None:
        context.ready()
        for _ in range(20):
            context.heartbeat()
            await anyio.sleep(2.9)
        context.mark_idle()
        await context.wait_stopping()

    async def never_beats(context: Context) -> None:
        context.ready()
        await context.wait_stopping()

    specs = [ChildSpec("works", works, hang_seconds=3.0), ChildSpec("never", never_beats, hang_seconds=3.0)]
    root = Supervisor("root", specs)
    async with running(root):
        await anyio.sleep(200)
        assert [node.incarnation for node in root.snapshot().children] == [1, 1]


@guarantees(
    "An attempt that ignores its cancellation for longer than the grace is unresponsive: the tree is unhealthy, and"
    " the attempt can't be killed again",
    topic="Watchdog and unresponsive attempts",
)
@guarantees(
    "After the end of an unresponsive attempt a new attempt starts, and the tree is healthy again",
    topic="Watchdog and unresponsive attempts",
)
@guarantees("An observer is notified once of an unresponsive attempt", topic="Observer")
async def test_an_attempt_that_ignores_cancellation_is_unresponsive_until_it_ends() -> None:
    observer = Timed()

    async def start(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            context.heartbeat()
            await ignore_cancellation(20)
        await context.wait_stopping()

    inner = Supervisor("inner", [ChildSpec("a", start, hang_seconds=3.0)], backoff=PLAIN, kill_grace_seconds=2.0)
    root = Supervisor("root", [ChildSpec("inner", inner.run)], observer=observer)
    async with running(root):
        await anyio.sleep(3.5)
        assert root.snapshot().children[0].children[0].state is State.STOPPING
        assert root.healthy
        await anyio.sleep(2)
        assert root.snapshot().children[0].children[0].state is State.UNRESPONSIVE
        assert not root.healthy
        assert not root.snapshot().healthy
        assert not root.kill("inner/a")
        await later(lambda: observer.started("inner/a") == 2)
        assert root.healthy
    assert observer.of("unresponsive") == [("inner/a",)]
    assert observer.times("unresponsive") == [5]
    assert observer.times("restarting") == [20]
    assert observer.reasons("inner/a") == ["hung", "stopped"]


@guarantees("An attempt that is not ready in time is cancelled and restarted", topic="Readiness")
async def test_an_attempt_that_never_gets_ready_is_restarted() -> None:
    observer = Timed()

    async def start(context: Context) -> None:
        if context.incarnation < 3:
            await anyio.sleep_forever()
        context.ready()
        await context.wait_stopping()

    root = Supervisor("root", [ChildSpec("a", start, start_timeout_seconds=7.0)], backoff=PLAIN, observer=observer)
    async with running(root):
        await anyio.sleep(100)
    assert observer.reasons("a") == ["start timeout", "start timeout", "stopped"]
    assert observer.times("started") == [0, 8, 17]
