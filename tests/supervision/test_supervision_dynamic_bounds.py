"""Where a dynamic supervisor has bounds: places, mailboxes, its end; and the moment in which a child retires."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    MailboxClosed,
    MailboxFull,
    RestartIntensity,
    RestartIntensityExceeded,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Puppet,
    fail_on_max_deliveries,
    question,
    running,
    until,
)
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "If the mailbox of a child is full, `deliver_nowait` refuses the message and `deliver` waits",
    topic="Dynamic supervisors",
)
async def test_a_full_mailbox_refuses_or_makes_wait() -> None:
    workers = Workers(mailbox_capacity=1)
    async with running(workers.root), anyio.create_task_group() as tasks:
        workers.hold("a")
        workers.supervisor.deliver_nowait("a", 0)
        await anyio.wait_all_tasks_blocked()
        workers.supervisor.deliver_nowait("a", 1)
        with pytest.raises(MailboxFull):
            workers.supervisor.deliver_nowait("a", 2)
        with pytest.raises(MailboxFull):
            await workers.supervisor.ask("a", question("x"), PATIENCE_SECONDS)
        tasks.start_soon(workers.supervisor.deliver, "a", 3)
        await anyio.wait_all_tasks_blocked()
        assert workers.supervisor.snapshot().mailbox_depth == 2
        workers.release()
        await until(lambda: workers.alive == 0)
    assert workers.got == [("a", 0), ("a", 1), ("a", 3)]


@guarantees(
    "If there are `max_children` children, `deliver_nowait` refuses a new child and `deliver` waits; a sender that "
    "stops waiting leaves nothing behind",
    topic="Dynamic supervisors",
)
async def test_too_many_children_refuse_or_make_wait() -> None:
    workers = Workers(max_children=2)
    done: list[str] = []

    async def deliver(key: str) -> None:
        await workers.supervisor.deliver(key, "late")
        done.append(key)

    async with running(workers.root), anyio.create_task_group() as tasks:
        workers.hold("a", "b")
        workers.supervisor.deliver_nowait("a", 1)
        workers.supervisor.deliver_nowait("b", 1)
        workers.supervisor.deliver_nowait("a", 2)
        with pytest.raises(MailboxFull) as caught:
            workers.supervisor.deliver_nowait("c", 1)
        assert caught.value.capacity == 2
        with pytest.raises(MailboxFull):
            await workers.supervisor.ask("c", question("x"), PATIENCE_SECONDS)
        for key in "cdecc":
            tasks.start_soon(deliver, key)
        await anyio.wait_all_tasks_blocked()
        assert (done, workers.alive) == ([], 2)
        with anyio.move_on_after(0.001):
            await workers.supervisor.deliver("f", "never")
        workers.gates["a"].set()
        await until(lambda: len(done) == 5)
        await until(lambda: workers.alive == 1)
        workers.release()
    assert Counter(key for key, message in workers.got if message == "late") == {"c": 3, "d": 1, "e": 1}
    assert "f" not in dict(workers.got)


@guarantees(
    "A sender that waits for a place for a new child stops waiting when another sender makes that child",
    topic="Dynamic supervisors",
)
@pytest.mark.parametrize("together", [True, False])
async def test_a_wait_for_a_place_ends_when_another_sender_makes_the_child(together: bool) -> None:
    workers = Workers(max_children=2)
    done: list[int] = []

    async def deliver(number: int) -> None:
        await workers.supervisor.deliver("c", number)
        done.append(number)

    async with running(workers.root), anyio.create_task_group() as tasks:
        workers.hold("a", "b", "c")
        workers.supervisor.deliver_nowait("a", 0)
        workers.supervisor.deliver_nowait("b", 0)
        for number in (1, 2, 3):
            tasks.start_soon(deliver, number)
        await anyio.wait_all_tasks_blocked()
        if together:
            # Two places come in one turn, and go to two that wait for the same child: one of them is not needed.
            workers.gates["b"].set()
        workers.gates["a"].set()
        await until(lambda: len(done) == 3)  # while the child that they want is held
        await until(lambda: workers.alive == 2 - together)
        workers.release()
        await until(lambda: workers.alive == 0)
        for key in "de":
            workers.supervisor.deliver_nowait(key, 4)  # both places are free again
        with pytest.raises(MailboxFull):
            workers.supervisor.deliver_nowait("f", 4)
    assert sorted(workers.got) == [("a", 0), ("b", 0), ("c", 1), ("c", 2), ("c", 3), ("d", 4), ("e", 4)]


@guarantees(
    "A child that returns with envelopes left and acked none counts as crashed, so the restart intensity prevents "
    "an endless loop",
    topic="Dynamic supervisors",
)
async def test_returning_with_envelopes_left_counts_as_a_crash() -> None:
    attempts: list[int] = []

    async def lazy(context: Context) -> None:
        attempts.append(context.incarnation)

    lazies: DynamicSupervisor[int] = DynamicSupervisor(
        "lazies", lazy, mailbox_capacity=5, max_children=5, intensity=RestartIntensity(3, 60.0), backoff=AT_ONCE
    )
    lazies.deliver_nowait("a", 1)
    with pytest.raises(RestartIntensityExceeded, match="returned"), anyio.fail_after(PATIENCE_SECONDS):
        await lazies.run(ActorContext("lazies"))
    assert attempts == [1, 2, 3, 4]


@guarantees(
    "A crash of a dynamic child counts, also if its mailbox is empty and so no child restarts",
    topic="Restart intensity and escalation",
)
async def test_a_crash_with_an_empty_mailbox_counts_without_a_restart() -> None:
    attempts: list[str] = []

    async def start(context: Context) -> None:
        attempts.append(context.name)
        context.ack(context.receive_nowait())
        raise Boom

    pool: DynamicSupervisor[int] = DynamicSupervisor(
        "pool", start, mailbox_capacity=5, max_children=5, intensity=RestartIntensity(2, 60.0), backoff=AT_ONCE
    )
    for key in "abc":
        pool.deliver_nowait(key, 1)
    with pytest.raises(RestartIntensityExceeded, match="Boom"), anyio.fail_after(PATIENCE_SECONDS):
        await pool.run(ActorContext("pool"))
    assert sorted(attempts) == ["a", "b", "c"]
    assert pool.snapshot().total_children == 0


@guarantees("No message is lost that arrives while a child ends", topic="Dynamic supervisors")
@pytest.mark.parametrize("pause", [True, False])
async def test_no_message_slips_through_as_a_child_retires(pause: bool) -> None:
    got: list[int] = []

    async def start(context: Context) -> None:
        async def handle(envelopes: list[Envelope[int]]) -> None:
            got.extend(envelope.message for envelope in envelopes)

        await serve_until_empty(context, handle, limit=2, on_max_deliveries=fail_on_max_deliveries)
        if pause:  # a message may come now: the attempt's end must find it
            await anyio.lowlevel.checkpoint()

    pool: DynamicSupervisor[int] = DynamicSupervisor(
        "pool", start, mailbox_capacity=2, max_children=2, backoff=AT_ONCE, intensity=OFTEN
    )

    async def deliver(first: int) -> None:
        for number in range(first, first + 200):
            await pool.deliver(str(number % 3), number)
            if number % 4 == 0:
                await anyio.lowlevel.checkpoint()

    async with running(Supervisor("root", [ChildSpec("pool", pool.run)])):
        async with anyio.create_task_group() as tasks:
            for sender in range(3):
                tasks.start_soon(deliver, sender * 200)
        await until(lambda: pool.snapshot().total_children == 0)
    assert sorted(got) == list(range(600))
    for sender in range(3):
        for key in range(3):
            own = [number for number in got if number // 200 == sender and number % 3 == key]
            assert own == sorted(own)


@guarantees("The end of the tree ends the wait of every sender for a place", topic="Dynamic supervisors")
async def test_closing_ends_the_waits_for_a_place() -> None:
    pool: DynamicSupervisor[int] = DynamicSupervisor("pool", anyio.sleep_forever, mailbox_capacity=1, max_children=1)  # type: ignore[arg-type]
    pool.deliver_nowait("a", 1)
    refused: list[str] = []

    async def deliver(key: str) -> None:
        try:
            await pool.deliver(key, 2)
        except MailboxClosed:
            refused.append(key)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            for key in "aabc":
                tasks.start_soon(deliver, key)
            await anyio.wait_all_tasks_blocked()
            pool.close()
    assert sorted(refused) == ["a", "a", "b", "c"]


@guarantees("A snapshot of a dynamic supervisor lists at most a hundred children and counts all", topic="Snapshot")
async def test_a_snapshot_lists_a_hundred_and_counts_all() -> None:
    workers = Workers(max_children=300)
    for number in range(250):
        workers.supervisor.deliver_nowait(str(number), number)
    snapshot = workers.root.snapshot().children[0]
    assert (len(snapshot.children), snapshot.total_children, snapshot.mailbox_depth) == (100, 250, 250)
    assert snapshot.kind == "dynamic"


@guarantees("Limits below one are refused", topic="Dynamic supervisors")
@pytest.mark.parametrize("bounds", [{"max_children": 0}, {"mailbox_capacity": 0}, {"max_deliveries": 0}])
async def test_bounds_below_one_are_refused_at_once(bounds: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"mailbox_capacity": 1, "max_children": 1, **bounds}
    with pytest.raises(ValueError, match="at least 1"):
        DynamicSupervisor[int]("pool", Puppet("a").start, **settings)
