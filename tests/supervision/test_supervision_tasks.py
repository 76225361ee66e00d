"""The tasks of dynamic children: used again where an attempt left nothing behind, and only there."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import sniffio
import trio
from anyio.lowlevel import checkpoint

from bcs.supervision import ActorContext, DynamicSupervisor, Envelope, Mailbox, State, Supervisor, serve_until_empty
from bcs.supervision.load import Load
from bcs.supervision.spec import ChildSpec
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    ON_ASYNCIO,
    Boom,
    Recorder,
    fail_on_max_deliveries,
    running,
    until,
)
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio

_left_behind: ContextVar[str] = ContextVar("left_behind", default="nothing")
_incomparable: ContextVar[object] = ContextVar("incomparable", default=None)


class Incomparable:
    def __eq__(self, _: object) -> bool:
        raise ValueError("for a test")

    __hash__ = None  # type: ignore[assignment]


def this_task() -> object:
    return trio.lowlevel.current_task() if sniffio.current_async_library() == "trio" else asyncio.current_task()


class Pool:
    """Children that note their task, and the context variable as they find it."""

    def __init__(self) -> None:
        self.tasks: list[object] = []  # the tasks themselves, because an id is used again
        self.found: list[str] = []
        self.handled = 0
        self.held: anyio.Event | None = None
        self.observer = Recorder()
        self.supervisor: DynamicSupervisor[str] = DynamicSupervisor(
            "pool", self.start, mailbox_capacity=2000, max_children=2000, backoff=AT_ONCE, intensity=OFTEN
        )
        self.root = Supervisor("root", [ChildSpec("pool", self.supervisor.run)], observer=self.observer)

    async def start(self, context: ActorContext[str]) -> None:
        self.tasks.append(this_task())
        self.found.append(_left_behind.get())

        async def handle(envelopes: list[Envelope[str]]) -> None:
            (message,) = {envelope.message for envelope in envelopes}
            if message == "set":
                _left_behind.set(context.name)
            elif message == "set incomparable":
                _incomparable.set(Incomparable())
            elif message == "cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            elif message == "wait":
                await checkpoint()
            elif message == "crash" and context.incarnation == 1:
                raise Boom
            elif message == "hold":
                assert self.held is not None
                await self.held.wait()
            self.handled += len(envelopes)

        await serve_until_empty(context, handle, limit=10, on_max_deliveries=fail_on_max_deliveries)

    async def handle(self, *messages: str) -> None:
        """Deliver messages one after the other, each after the one before it was handled."""
        for message in messages:
            before = self.handled
            self.supervisor.deliver_nowait("key", message)
            await until(lambda: self.handled > before and not self.supervisor.snapshot().total_children)  # noqa: B023


@guarantees(
    "An attempt runs in the task of an earlier attempt that returned, so a message in its own burst starts no task",
    topic="Dynamic supervisors",
)
async def test_a_thousand_bursts_one_after_the_other_start_one_task() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle(*["x"] * 1000)
    assert len(pool.tasks) == 1000
    assert len(set(pool.tasks)) == 1


async def test_attempts_at_the_same_time_have_tasks_of_their_own() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x")
        pool.held = anyio.Event()
        for number in range(10):
            pool.supervisor.deliver_nowait(f"held-{number}", "hold")
        await until(lambda: len(pool.tasks) == 11)
        pool.held.set()
        await until(lambda: pool.handled == 11)
    assert len(set(pool.tasks)) == 10


@guarantees("A context variable that an attempt sets reaches no other attempt", topic="Dynamic supervisors")
async def test_a_context_variable_of_an_attempt_reaches_no_other_attempt() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x", "set", "x", "x")
    assert pool.found == ["nothing"] * 4
    assert len(set(pool.tasks)) == 2


async def test_an_attempt_ends_although_the_context_variable_that_it_set_compares_with_nothing() -> None:
    pool = Pool()
    _incomparable.set(Incomparable())
    async with running(pool.root):
        await pool.handle("x", "set incomparable", "x")
    assert pool.observer.reasons("pool/key") == ["returned"] * 3


@ON_ASYNCIO
@pytest.mark.parametrize("in_a_row", [False, True])
async def test_a_native_cancellation_that_an_attempt_leaves_behind_harms_no_other_attempt(in_a_row: bool) -> None:
    pool = Pool()
    pool.supervisor._max_running = 1
    async with running(pool.root):
        pool.supervisor.deliver_nowait("cancels", "cancel")
        if not in_a_row:
            await until(lambda: pool.handled)
        pool.supervisor.deliver_nowait("other", "wait")
        await until(lambda: pool.handled == 2)
    assert pool.observer.reasons("pool/other") == ["returned"]
    assert pool.observer.reasons("pool") == ["stopped"]


async def test_a_task_whose_attempt_crashed_is_not_used_again() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x", "crash", "x")
    assert pool.observer.reasons("pool/key") == ["returned", "crashed", "returned", "returned"]
    assert pool.tasks[0] == pool.tasks[1] != pool.tasks[2] == pool.tasks[3]


async def test_a_kill_ends_only_the_attempt_that_uses_the_task_now() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x", "x")
        pool.held = anyio.Event()
        pool.supervisor.deliver_nowait("key", "hold")
        await until(lambda: len(pool.tasks) == 3)
        assert pool.supervisor.kill("key")
        await until(lambda: len(pool.tasks) == 4)
        pool.held.set()
        await until(lambda: pool.handled == 3)
    assert pool.observer.reasons("pool/key") == ["returned", "returned", "killed", "returned"]
    assert len(set(pool.tasks[:3])) == 1


async def test_an_attempt_that_is_killed_before_its_task_wakes_handles_nothing() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x")
        pool.supervisor.deliver_nowait("key", "x")
        assert pool.supervisor.kill("key")
        await until(lambda: pool.handled == 2)
    assert pool.observer.reasons("pool/key") == ["returned", "killed", "returned"]
    assert len(pool.tasks) == 2  # the killed attempt did not begin


async def test_no_more_tasks_wait_than_the_limit() -> None:
    pool = Pool()
    async with running(pool.root):
        pool.held = anyio.Event()
        before = len(anyio.get_running_tasks())
        for number in range(600):
            pool.supervisor.deliver_nowait(str(number), "hold")
        await until(lambda: len(pool.tasks) == 600)
        pool.held.set()
        await until(lambda: pool.handled == 600 and len(anyio.get_running_tasks()) <= before + 256)
        assert len(anyio.get_running_tasks()) == before + 256


@ON_ASYNCIO
async def test_a_native_cancellation_of_a_task_without_an_attempt_harms_nobody() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x")
        (idle,) = [task for task in asyncio.all_tasks() if task.get_name() == "pool/key"]
        idle.cancel()
        await until(idle.done)
        await pool.handle("x")
    assert pool.observer.reasons("pool") == ["stopped"]
    assert pool.observer.reasons("pool/key") == ["returned"] * 2


@ON_ASYNCIO
async def test_a_native_cancellation_of_a_task_that_just_got_an_attempt_is_a_crash_of_the_attempt() -> None:
    pool = Pool()
    async with running(pool.root):
        await pool.handle("x")
        (idle,) = [task for task in asyncio.all_tasks() if task.get_name() == "pool/key"]
        pool.supervisor.deliver_nowait("key", "x")
        idle.cancel()
        await until(lambda: pool.handled == 2)
    assert pool.observer.reasons("pool/key") == ["returned", "crashed", "returned"]


@guarantees("A snapshot lists at most a hundred children, and looks at no other child", topic="Snapshot")
async def test_a_snapshot_looks_at_no_more_than_a_hundred_children(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(max_children=1000)
    for number in range(1000):
        workers.supervisor.deliver_nowait(str(number), number)
    looked_at: list[str] = []
    child = type(next(iter(workers.supervisor._children.by_key.values())))
    node = child.node

    def noted(self: Any, *rest: Any) -> Any:
        looked_at.append(self.name)
        return node(self, *rest)

    monkeypatch.setattr(child, "node", noted)
    snapshot = workers.supervisor.snapshot()
    assert (snapshot.mailbox_depth, snapshot.total_children, len(looked_at)) == (1000, 1000, 100)


async def test_the_sum_of_a_snapshot_is_that_of_the_mailboxes_through_crash_and_back_pressure() -> None:
    workers = Workers(mailbox_capacity=2, max_deliveries=3)
    children = workers.supervisor._children.by_key

    def sums_agree() -> bool:
        return workers.supervisor.snapshot().mailbox_depth == sum(
            child.own_mailbox.depth for child in children.values()
        )

    async with running(workers.root), anyio.create_task_group() as senders:
        workers.hold("a")
        for number in range(8):
            senders.start_soon(workers.supervisor.deliver, "a", "poison" if number == 3 else number)
        workers.supervisor.deliver_nowait("b", "poison")
        await anyio.wait_all_tasks_blocked()
        assert sums_agree()
        workers.release()
        await until(lambda: workers.alive == 0)
        assert sums_agree()
        assert workers.supervisor.snapshot().mailbox_depth == 0
    assert {message for _, message in workers.got} == {0, 1, 2, 4, 5, 6, 7}
    assert workers.given_up == ["poison"] * 2
    assert workers.supervisor.snapshot().state is State.IDLE


async def test_the_sum_of_a_snapshot_has_an_envelope_that_is_taken_before_its_sender_continues() -> None:
    load = Load()
    mailbox: Mailbox[int] = Mailbox("mailbox", 1, load=load)
    mailbox.send_nowait(0)
    async with anyio.create_task_group() as senders:
        senders.start_soon(mailbox.send, 1)
        await anyio.wait_all_tasks_blocked()
        mailbox.ack(mailbox.receive_nowait())
        envelopes = mailbox.receive_nowait()
        assert [envelope.message for envelope in envelopes] == [1]
        assert len(load) == mailbox.depth == 1
        mailbox.ack(envelopes)
    assert len(load) == mailbox.depth == 0
