"""What goes on while an actor backs off, exactly: on trio's clock, which jumps."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import (
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    State,
    Strategy,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import (
    OFTEN,
    Boom,
    Context,
    Puppet,
    Question,
    Recorder,
    fail_on_max_deliveries,
    question,
    running,
)
from tests.supervision.timed import ON_TRIO, PLAIN, Timed, later
from tests.support.guarantees import guarantees

pytestmark = [pytest.mark.anyio, ON_TRIO]


@guarantees("Both kinds of supervisor take the jitter from their argument `random`", topic="Back-off")
@pytest.mark.parametrize("kind", ["static", "dynamic"])
async def test_the_given_random_numbers_make_the_jitter(kind: str) -> None:
    observer = Timed()
    numbers = iter([0.0, 0.25, 1.0])
    options: dict[str, Any] = {
        "backoff": Backoff(initial_seconds=8.0, factor=1.0, maximum_seconds=8.0, jitter=0.5),
        "random": lambda: next(numbers),
    }

    async def start(context: Context) -> None:
        context.ready()
        if context.incarnation <= 3:
            raise Boom
        context.ack(context.receive_nowait())
        await context.wait_stopping()

    mailbox: Mailbox[str] = Mailbox("a", 5)
    root: Supervisor | DynamicSupervisor[str]
    if kind == "static":
        root = Supervisor("root", [ChildSpec("a", start, mailbox=mailbox)], observer=observer, **options)
    else:
        root = DynamicSupervisor[str]("root", start, mailbox_capacity=5, max_children=5, observer=observer, **options)
        root.deliver_nowait("a", "x")
    async with running(root):
        await later(lambda: observer.started("a") == 4)
    assert observer.of("restarting") == [("a", 8.0), ("a", 7.0), ("a", 4.0)]
    assert observer.times("started")[:4] == [0, 8, 15, 19]


@guarantees("Each key has its own back-off; a healthy period or an empty mailbox resets it", topic="Back-off")
async def test_each_key_has_its_own_back_off_which_health_or_emptiness_resets() -> None:
    observer = Recorder()
    lives = {"a": [0.0, 0.0, 9.9, 10.0, 0.0], "b": [0.0, 0.0]}

    async def start(context: Context) -> None:
        async def handle(envelopes: list[Envelope[str]]) -> None:
            if lives[context.name]:
                await anyio.sleep(lives[context.name].pop(0))
                raise Boom

        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    pool: DynamicSupervisor[str] = DynamicSupervisor(
        "pool",
        start,
        mailbox_capacity=5,
        max_children=5,
        max_deliveries=100,
        backoff=PLAIN,
        intensity=OFTEN,
        observer=observer,
    )
    async with running(pool):
        pool.deliver_nowait("a", "x")
        await later(lambda: observer.started("a") == 3)
        pool.deliver_nowait("b", "x")
        await later(lambda: pool.snapshot().total_children == 0)
        lives["a"] = [0.0]
        pool.deliver_nowait("a", "y")
        await later(lambda: pool.snapshot().total_children == 0)
    assert [delay for key, delay in observer.of("restarting") if key == "a"] == [1, 2, 4, 1, 2, 1]
    assert [delay for key, delay in observer.of("restarting") if key == "b"] == [1, 2]


@guarantees("A group restart from an earlier child shortens no member's back-off", topic="Back-off")
async def test_a_group_restart_cuts_no_member_s_back_off_short() -> None:
    a, b = Puppet("a"), Puppet("b")
    observer = Timed()
    root = Supervisor(
        "root", [a.spec(), b.spec()], strategy=Strategy.REST_FOR_ONE, backoff=PLAIN, intensity=OFTEN, observer=observer
    )
    async with running(root):
        for attempt in (1, 2, 3):
            await later(lambda: b.attempts == attempt)  # noqa: B023 - awaited at once
            b.crash()
        await later(lambda: len(observer.of("restarting")) == 3)
        assert observer.of("restarting")[-1] == ("b", 4.0)
        began = anyio.current_time()
        a.crash()
        await later(lambda: a.attempts == 2)
        assert anyio.current_time() - began == pytest.approx(1.0, abs=0.02)
        await later(lambda: b.attempts == 4)
        assert anyio.current_time() - began == pytest.approx(4.0, abs=0.02)


@guarantees("A group's back-off ends with the run of its supervisor", topic="Back-off")
async def test_the_back_off_of_a_group_ends_with_the_run() -> None:
    a, b = Puppet("a"), Puppet("b")

    async def slow_to_stop(context: Context) -> None:
        context.ready()
        await context.wait_stopping()
        await anyio.sleep(1_000)

    slow = ChildSpec("slow", slow_to_stop, shutdown_seconds=2_000.0)
    observer = Recorder()
    inner = Supervisor("in", [a.spec(), b.spec(), slow], strategy=Strategy.ONE_FOR_ALL, backoff=PLAIN, intensity=OFTEN)
    root = Supervisor("root", [ChildSpec("in", inner.run)], backoff=PLAIN, observer=observer)
    b.crash_on_start = 3
    async with running(root, shutdown_seconds=0.0):
        b.crash()
        await later(lambda: observer.of("restarting")[-1] == ("in/b", 5.0))
        assert root.kill("in")  # while the group waits for the slow one to stop
        await later(lambda: root.snapshot().children[0].state is State.RUNNING)
        slow_attempts = root.snapshot().children[0].children[2].incarnation
        assert root.kill("in/slow")
        began = anyio.current_time()
        await later(lambda: root.snapshot().children[0].children[2].incarnation > slow_attempts)
        assert anyio.current_time() - began == pytest.approx(1.0, abs=0.02)


@guarantees(
    "Messages, waiting senders and asks between two runs are served by the next run", topic="Dynamic supervisors"
)
async def test_envelopes_sent_between_two_runs_are_served_by_the_next_run() -> None:
    got: list[tuple[str, str, float]] = []

    async def start(context: Context) -> None:
        async def handle(envelopes: list[Envelope[Any]]) -> None:
            message = envelopes[0].message
            if isinstance(message, Question):
                message.reply.send("yes")
            text = message.text if isinstance(message, Question) else message
            got.append((context.name, text, round(anyio.current_time() - killed_at, 6)))
            await anyio.sleep(1)

        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    pool: DynamicSupervisor[Any] = DynamicSupervisor("pool", start, mailbox_capacity=1, max_children=3)
    root = Supervisor("root", [ChildSpec("pool", pool.run)], backoff=PLAIN)
    async with running(root), anyio.create_task_group() as tasks:
        killed_at = anyio.current_time()
        pool.deliver_nowait("a", "held")
        await anyio.wait_all_tasks_blocked()
        assert root.kill("pool")
        await anyio.wait_all_tasks_blocked()
        assert [node.state for node in root.snapshot().children] == [State.BACKING_OFF]
        pool.deliver_nowait("a", "at once")
        tasks.start_soon(pool.deliver, "a", "waits for room")
        tasks.start_soon(pool.ask, "b", question("asked"), 100.0)
        pool.deliver_nowait("c", "new")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(pool.deliver, "d", "waits for a place")
        await later(lambda: pool.snapshot().total_children == 0)
    assert sorted(got) == [
        ("a", "at once", 2.0),
        ("a", "held", 0.0),
        ("a", "held", 1.0),
        ("a", "waits for room", 3.0),
        ("b", "asked", 1.0),
        ("c", "new", 1.0),
        ("d", "waits for a place", 2.0),
    ]
