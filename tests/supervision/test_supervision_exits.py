"""Every way in which an attempt can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ActorDied,
    ChildSpec,
    DynamicSupervisor,
    Mailbox,
    Restart,
    Supervisor,
    UnexpectedCancellation,
)
from tests.supervision.harness import (
    AT_ONCE,
    ON_ASYNCIO,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Puppet,
    Recorder,
    question,
    raises_one,
    running,
    until,
)
from tests.support.guarantees import guarantees


def once(act: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """An actor whose first attempt does something, and whose second one is well."""

    async def start(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            await act(context)
        else:
            await context.wait_stopping()

    return start


async def in_a_group(context: Context) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crash, context)
        tasks.start_soon(anyio.sleep_forever)


async def crash(context: Context) -> None:
    raise Boom


async def cancelled_error(context: Context) -> None:
    raise asyncio.CancelledError


async def cancelled_natively(context: Context) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await anyio.sleep_forever()


async def cancelled_error_in_a_group(context: Context) -> None:
    raise BaseExceptionGroup("g", [asyncio.CancelledError(), Boom()])


@guarantees(
    "Every exception counts as a crash, also the exception group of a task group inside the actor",
    topic="Restart kinds",
)
@pytest.mark.anyio
@pytest.mark.parametrize(("act", "error"), [(crash, Boom), (in_a_group, ExceptionGroup)])
async def test_every_kind_of_exception_counts_as_a_crash(
    act: Callable[[Context], Any], error: type[BaseException]
) -> None:
    await _crash_and_look(act, error)


@guarantees(
    "A native cancellation that leaks out of an actor, although nothing cancelled the actor, counts as a crash and "
    "not as a silent end",
    topic="Unexpected cancellation",
)
@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.parametrize(
    ("act", "error"),
    [
        (cancelled_error, UnexpectedCancellation),
        (cancelled_natively, UnexpectedCancellation),
        (cancelled_error_in_a_group, ExceptionGroup),
    ],
)
async def test_a_cancellation_that_leaks_out_of_a_library_counts_as_a_crash(
    act: Callable[[Context], Any], error: type[BaseException]
) -> None:
    await _crash_and_look(act, error)


async def _crash_and_look(act: Callable[[Context], Any], error: type[BaseException]) -> None:
    observer = Recorder()
    bystander = Puppet("bystander")
    root = Supervisor(
        "root",
        [bystander.spec(), ChildSpec("a", once(act), restart=Restart.TRANSIENT)],
        backoff=AT_ONCE,
        observer=observer,
    )
    async with running(root):
        await until(lambda: observer.started("a") == 2)
        assert bystander.attempts == 1
        assert (root.snapshot().children[1].last_error or "").startswith(error.__name__)
    assert observer.of("ended")[0] == ("a", 1, "crashed", error)
    assert observer.reasons("a") == ["crashed", "stopped"]


@guarantees("An unexpected cancellation counts as a failed delivery", topic="Unacked envelopes and redelivery")
@guarantees("If the actor dies, the envelope of an ask is redelivered, although the caller is gone", topic="Asks")
@guarantees(
    "After an unexpected cancellation unacked envelopes are redelivered, and asks fail",
    topic="Unexpected cancellation",
)
@pytest.mark.anyio
@ON_ASYNCIO
async def test_unacked_envelopes_are_redelivered_after_an_unexpected_cancellation() -> None:
    mailbox: Mailbox[Any] = Mailbox("m", 5)
    attempts: list[int] = []

    async def start(context: Context) -> None:
        context.ready()
        while envelopes := await context.receive():
            attempts.append(envelopes[0].attempts)
            if context.incarnation == 1:
                await cancelled_natively(context)
            context.ack(envelopes)

    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE)
    async with running(root):
        with pytest.raises(ActorDied, match="UnexpectedCancellation"):
            await mailbox.ask(question("x"), PATIENCE_SECONDS)
        await until(lambda: mailbox.depth == 0)
    assert attempts == [0, 1]


@guarantees(
    "SystemExit and KeyboardInterrupt of any child are not handled: the siblings are cancelled, and then the root "
    "raises the same exception",
    topic="SystemExit",
)
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("where", ["static", "dynamic"])
def test_system_exit_and_keyboard_interrupt_end_the_program(
    kind: type[BaseException], backend: str, where: str
) -> None:
    began: list[str] = []
    left: list[str] = []
    observer = Recorder()

    async def bystander(context: Context) -> None:
        began.append(context.name)
        context.ready()
        try:
            await anyio.sleep_forever()
        finally:
            left.append("bystander")

    async def start(context: Context) -> None:
        if context.name == "bystander":
            await bystander(context)
        await until(lambda: len(began) == (3 if "root" in left else 2))
        raise kind

    def subtree() -> Supervisor | DynamicSupervisor[str]:
        names = ("bystander", "a")
        if where == "static":
            return Supervisor("inner", [ChildSpec(name, start) for name in names])
        pool = DynamicSupervisor[str]("inner", start, mailbox_capacity=1, max_children=2)
        for name in names:
            pool.deliver_nowait(name, "x")
        return pool

    async def main() -> None:
        children = [ChildSpec("bystander", bystander), ChildSpec("inner", subtree().run)]
        root = Supervisor("root", children, observer=observer)
        context: Context = ActorContext("root")
        with pytest.raises(kind), anyio.fail_after(PATIENCE_SECONDS):
            await root.run(context)
        left.append("root")
        with anyio.fail_after(PATIENCE_SECONDS):
            async with running(subtree(), wait_started=False):
                await anyio.sleep_forever()

    with raises_one(kind):
        anyio.run(main, backend=backend)
    assert left == ["bystander", "bystander", "root", "bystander"]
    assert observer.reasons("inner/a") == observer.reasons("inner") == ["crashed"]
    assert observer.reasons("bystander") == observer.reasons("inner/bystander") == ["cancelled"]
    assert observer.of("restarting") == []


@guarantees(
    "A cancellation from outside ends all children, restarts none, and keeps the envelopes",
    topic="Start and stop",
)
@guarantees("A cancellation from outside never counts as a failed delivery", topic="Unacked envelopes and redelivery")
@pytest.mark.anyio
async def test_cancellation_from_outside_ends_all_and_keeps_the_envelopes() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    observer = Recorder()

    async def start(context: Context) -> None:
        context.ready()
        await context.receive()
        await anyio.sleep_forever()

    async def cleans_up_badly(context: Context) -> None:
        context.ready()
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom

    children = [ChildSpec("m", start, mailbox=mailbox), ChildSpec("b", cleans_up_badly)]
    root = Supervisor("root", [ChildSpec("in", Supervisor("in", children).run)], observer=observer)
    mailbox.send_nowait("x")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(root.run, ActorContext("root"))
            await until(lambda: mailbox.unacked)
            await until(lambda: root.snapshot().children[0].children[1].incarnation == 1)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert observer.reasons("in/m") == observer.reasons("in/b") == observer.reasons("in") == ["cancelled"]
    assert ("in/b", 1, "cancelled", Boom) in observer.of("ended")
    assert not observer.of("restarting")
    (envelope,) = mailbox.receive_nowait()
    assert envelope.attempts == 0
