"""Which end of an attempt is held against the envelopes that it had unacked: a crash and a hang, and nothing else."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import ActorContext, ChildSpec, DynamicSupervisor, Envelope, Mailbox, Strategy, Supervisor
from tests.supervision.harness import AT_ONCE, OFTEN, Context, Puppet, Recorder, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio

LIMIT_SECONDS = 0.02


@guarantees("A hang counts as a failed delivery", topic="Unacked envelopes and redelivery")
@guarantees(
    "A kill, a start timeout and a shutdown timeout never count as a failed delivery",
    topic="Unacked envelopes and redelivery",
)
@pytest.mark.parametrize(("how", "counted"), [("start timeout", 0), ("shutdown timeout", 0), ("shot", 0), ("hung", 1)])
async def test_only_a_hang_counts_against_envelopes_not_other_cancellations(how: str, counted: int) -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    observer = Recorder()
    seen: list[tuple[str, int, str]] = []

    async def start(context: Context) -> None:
        if how != "start timeout" or context.incarnation > 1:
            context.ready()
        (envelope,) = await context.receive()
        if context.incarnation == 1:
            await anyio.sleep_forever()
        seen.append((envelope.message, envelope.attempts, str(envelope.last_error)))
        context.ack([envelope])
        context.mark_idle()
        await context.wait_stopping()

    sibling = Puppet("sibling")
    spec = ChildSpec(
        "m",
        start,
        mailbox=mailbox,
        shutdown_seconds=LIMIT_SECONDS,
        start_timeout_seconds=LIMIT_SECONDS if how == "start timeout" else 1_000.0,
        hang_seconds=LIMIT_SECONDS if how == "hung" else None,
    )
    # A sibling's crash stops the whole group, so that the one that holds the envelope can overstay.
    root = Supervisor(
        "root",
        [spec, sibling.spec()],
        strategy=Strategy.ONE_FOR_ALL,
        backoff=AT_ONCE,
        intensity=OFTEN,
        observer=observer,
    )
    mailbox.send_nowait("x")
    async with running(root, wait_started=False):
        await until(lambda: mailbox.unacked)
        if how == "shutdown timeout":
            await until(lambda: sibling.attempts)
            sibling.crash()
        elif how == "shot":
            assert root.kill("m", "shot")
        await until(lambda: seen)
    assert observer.reasons("m")[0] == how
    assert seen == [("x", counted, "m: died (hung)" if counted else "None")]


@guarantees(
    "For a dynamic child, too, only a hang counts, and no kill, shutdown timeout or cancellation from outside",
    topic="Unacked envelopes and redelivery",
)
@pytest.mark.parametrize(("how", "counted"), [("shutdown timeout", 0), ("shot", 0), ("cancelled", 0), ("hung", 1)])
async def test_only_a_hang_counts_for_a_dynamic_child_too(how: str, counted: int) -> None:
    observer = Recorder()
    seen: list[int] = []
    held = anyio.Event()

    async def start(context: ActorContext[str]) -> None:
        envelopes: list[Envelope[str]] = context.receive_nowait()
        if not held.is_set():
            held.set()
            await anyio.sleep_forever()
        seen.extend(envelope.attempts for envelope in envelopes)
        context.ack(envelopes)

    pool: DynamicSupervisor[str] = DynamicSupervisor(
        "pool",
        start,
        mailbox_capacity=5,
        max_children=5,
        shutdown_seconds=LIMIT_SECONDS,
        hang_seconds=LIMIT_SECONDS if how == "hung" else None,
        backoff=AT_ONCE,
        observer=observer,
    )
    pool.deliver_nowait("a", "x")
    context: Context = ActorContext("pool")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, context)
        await held.wait()
        if how == "shot":
            assert pool.kill("a", "shot")
        elif how == "shutdown timeout":
            context.request_stop()
        elif how == "cancelled":
            tasks.cancel_scope.cancel()
        if how in ("shot", "hung"):
            await until(lambda: seen)
            context.request_stop()
    if not seen:
        again: Context = ActorContext("pool", 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, again)
            await until(lambda: seen)
            again.request_stop()
    assert observer.reasons("a")[0] == how
    assert seen == [counted]


@guarantees(
    "After a crash each unacked envelope may be the cause: its failed delivery is counted, the error is kept with "
    "it, and it is redelivered alone",
    topic="Unacked envelopes and redelivery",
)
async def test_the_error_of_a_crash_is_kept_with_the_envelope() -> None:
    mailbox: Mailbox[Any] = Mailbox("m", 5)
    counted: list[BaseException | None] = []
    error = ValueError("of the crash")

    async def start(context: Context) -> None:
        context.ready()
        while envelopes := await context.receive():
            if not envelopes[0].attempts:
                raise error
            counted.append(envelopes[0].last_error)
            context.ack(envelopes)

    mailbox.send_nowait("x")
    async with running(Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE)):
        await until(lambda: counted)
    assert counted == [error]
