"""What depends on time in a dynamic supervisor, on trio's clock, which jumps."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import (
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    RestartIntensity,
    State,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import Boom, Context, Recorder, fail_on_max_deliveries, running, until
from tests.supervision.timed import ON_TRIO, PLAIN
from tests.support.guarantees import guarantees

pytestmark = [pytest.mark.anyio, ON_TRIO]


def pool_of(handle: Any, **options: Any) -> tuple[DynamicSupervisor[Any], Supervisor, Recorder]:
    async def start(context: Context) -> None:
        async def act(envelopes: list[Envelope[Any]]) -> None:
            await handle(context, envelopes)

        await serve_until_empty(context, act, on_max_deliveries=fail_on_max_deliveries)

    observer = Recorder()
    settings = {"mailbox_capacity": 10, "max_children": 10, "backoff": PLAIN, **options}
    pool: DynamicSupervisor[Any] = DynamicSupervisor("pool", start, **settings)
    spec = ChildSpec("pool", pool.run, shutdown_seconds=1_000.0)
    return pool, Supervisor("root", [spec], observer=observer), observer


@guarantees(
    "A hung dynamic child is found at most a tenth of the limit late", topic="Watchdog and unresponsive attempts"
)
async def test_a_hung_child_is_cancelled_whenever_it_started() -> None:
    ended: dict[str, float] = {}

    async def handle(context: Context, envelopes: list[Envelope[float]]) -> None:
        began = anyio.current_time()
        try:
            if context.incarnation == 1:
                await anyio.sleep(envelopes[0].message)
        finally:
            ended.setdefault(context.name, anyio.current_time() - began)

    pool, root, observer = pool_of(handle, hang_seconds=10.0)
    async with running(root):
        for number in range(5):
            pool.deliver_nowait(f"hangs {number}", 1_000.0)
            pool.deliver_nowait(f"works {number}", 9.0)
            await anyio.sleep(3.7)
        await until(lambda: pool.snapshot().total_children == 0, seconds=100, step=0.1)
    for number in range(5):
        assert 9.999 <= ended[f"hangs {number}"] <= 11.0
        assert observer.reasons(f"pool/hangs {number}") == ["hung", "returned"]
        assert observer.reasons(f"pool/works {number}") == ["returned"]


@guarantees(
    "A child of a dynamic supervisor backs off too, and a message for it does not shorten the wait", topic="Back-off"
)
@guarantees("A dynamic child that backs off can't be killed", topic="Kill by path")
async def test_a_crash_backs_off_for_its_key_alone() -> None:
    async def handle(context: Context, envelopes: list[Envelope[str]]) -> None:
        if envelopes[0].attempts < 2:
            raise Boom

    pool, root, observer = pool_of(handle)
    async with running(root):
        pool.deliver_nowait("a", "x")
        await anyio.sleep(0.5)
        assert pool.snapshot().children[0].state is State.BACKING_OFF
        assert not root.kill("pool/a")
        pool.deliver_nowait("a", "y")  # a message does not cut the back-off short
        await anyio.sleep(0.4)
        assert observer.started("pool/a") == 1
        await anyio.sleep(2.0)
        assert observer.started("pool/a") == 2
    assert observer.of("restarting")[:2] == [("pool/a", 1.0), ("pool/a", 2.0)]


@guarantees(
    "All children of a dynamic supervisor share one time to stop; afterwards the remaining envelopes stay in the "
    "mailboxes",
    topic="Shutdown budgets",
)
@guarantees("Within its time to stop a dynamic supervisor still serves new messages", topic="Shutdown budgets")
@guarantees(
    "The cancellation of a dynamic child at the end of the time to stop does not count as a restart",
    topic="Shutdown budgets",
)
async def test_a_stop_is_bounded_and_the_envelopes_stay() -> None:
    async def handle(context: Context, envelopes: list[Envelope[str]]) -> None:
        await anyio.sleep(envelopes[0].message)  # type: ignore[arg-type]

    pool, root, observer = pool_of(handle, shutdown_seconds=7.0, hang_seconds=500.0, intensity=RestartIntensity(0))
    async with running(root, shutdown_seconds=900.0) as tree:
        for key, seconds in (("quick", 6.0), ("slow", 100.0)):
            pool.deliver_nowait(key, seconds)
        await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        tree.stop.set()
        await anyio.sleep(1)
        pool.deliver_nowait("late", 1.0)
        await tree.ended.wait()
        assert anyio.current_time() - began == pytest.approx(7.0)
    assert observer.reasons("pool/quick") == observer.reasons("pool/late") == ["stopped"]
    assert observer.reasons("pool/slow") == ["shutdown timeout"]
    assert observer.reasons("pool") == ["stopped"]
    assert [(child.name, child.mailbox_depth) for child in pool.snapshot().children] == [("slow", 1)]


@guarantees(
    "A stop waits for an unresponsive attempt only during the grace, but the run of the tree ends only when that "
    "attempt ends",
    topic="Watchdog and unresponsive attempts",
)
@guarantees(
    "A snapshot lists unresponsive children first, so that they are seen among any number of children",
    topic="Snapshot",
)
async def test_an_unresponsive_child_is_listed_and_delays_a_stop_by_its_grace_only() -> None:
    async def handle(context: Context, envelopes: list[Envelope[str]]) -> None:
        if envelopes[0].message == "ignore cancellation":
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60)
        await anyio.sleep(50)

    pool, root, observer = pool_of(handle, shutdown_seconds=7.0, kill_grace_seconds=2.0, max_children=300)
    async with running(root, shutdown_seconds=900.0) as tree:
        for number in range(150):
            pool.deliver_nowait(str(number), "x")
        pool.deliver_nowait("w", "ignore cancellation")
        await anyio.wait_all_tasks_blocked()
        assert root.kill("pool/w")
        await anyio.sleep(1)
        assert root.healthy
        await anyio.sleep(2)
        assert not root.healthy
        assert pool.snapshot().children[0].state is State.UNRESPONSIVE
        tree.stop.set()
        await anyio.sleep(8)
        assert pool.snapshot().total_children == 151
        assert root.snapshot().children[0].state is State.STOPPING
        await tree.ended.wait()
        assert anyio.current_time() == pytest.approx(60, abs=0.1)
    assert observer.of("unresponsive") == [("pool/w",)]


@guarantees("A stop takes no longer than the children need", topic="Shutdown budgets")
async def test_a_stop_takes_no_longer_than_the_children_do() -> None:
    async def handle(context: Context, envelopes: list[Envelope[str]]) -> None:
        await anyio.sleep(2)

    pool, root, _ = pool_of(handle, shutdown_seconds=7.0)
    async with running(root, shutdown_seconds=900.0) as tree:
        pool.deliver_nowait("a", "x")
        await anyio.wait_all_tasks_blocked()
        tree.stop.set()
        await tree.ended.wait()
        assert anyio.current_time() == pytest.approx(2, abs=0.1)


@guarantees(
    "The watchdog of a dynamic child runs from the start of the attempt",
    topic="Watchdog and unresponsive attempts",
)
async def test_a_child_that_hangs_before_its_first_receive_is_cancelled() -> None:
    async def start(context: Context) -> None:
        await anyio.sleep_forever()

    pool: DynamicSupervisor[str] = DynamicSupervisor("pool", start, mailbox_capacity=1, max_children=1, hang_seconds=3)
    observer = Recorder()
    root = Supervisor("root", [ChildSpec("pool", pool.run, shutdown_seconds=0.1)], observer=observer)
    async with running(root):
        pool.deliver_nowait("a", "x")
        await anyio.sleep(3.4)
        assert observer.reasons("pool/a") == ["hung"]


@guarantees("The back-off of a dynamic child ends with the run of its supervisor", topic="Back-off")
@guarantees(
    "A child that returns with envelopes left and acked some restarts at once, without back-off",
    topic="Dynamic supervisors",
)
@guarantees("A snapshot between two runs of a supervisor shows no child as backing off", topic="Snapshot")
async def test_a_back_off_ends_with_the_run() -> None:
    got: list[str] = []

    async def one_at_a_time(context: Context) -> None:
        envelopes = context.receive_nowait()
        if context.incarnation == 1:
            raise Boom
        got.extend(envelope.message for envelope in envelopes)
        context.ack(envelopes)

    pool: DynamicSupervisor[str] = DynamicSupervisor(
        "pool",
        one_at_a_time,
        mailbox_capacity=5,
        max_children=1,
        backoff=Backoff(initial_seconds=300.0, maximum_seconds=300.0),
    )
    root = Supervisor("root", [ChildSpec("pool", pool.run)], backoff=PLAIN)
    async with running(root):
        pool.deliver_nowait("a", "x")
        pool.deliver_nowait("a", "y")
        await anyio.sleep(0.1)
        assert pool.snapshot().children[0].state is State.BACKING_OFF
        assert root.kill("pool")
        await anyio.sleep(0.5)
        assert pool.snapshot().children[0].state is State.IDLE  # the next run starts it at once
        await anyio.sleep(1.5)
        assert got == ["x", "y"]
