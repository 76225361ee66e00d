"""What a dynamic supervisor keeps of a key: nothing, once there is no envelope for it."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest

from bcs.supervision import (
    ActorDied,
    AskTimeout,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Question,
    fail_on_max_deliveries,
    question,
    running,
    until,
)
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees("If `build` raises an error, the ask raises the same error, and no child is made", topic="Asks")
@pytest.mark.parametrize("runs", [True, False])
async def test_an_ask_that_cannot_be_built_makes_no_child_and_takes_no_place(runs: bool) -> None:
    workers = Workers(max_children=1)

    def refuse(reply: Any) -> Any:
        raise Boom

    async def refused(key: str) -> None:
        with pytest.raises(Boom):
            await workers.supervisor.ask(key, refuse, PATIENCE_SECONDS)

    async with running(workers.root) if runs else nullcontext():
        await refused("a")
        assert workers.alive == 0
        workers.supervisor.deliver_nowait("b", 1)  # the one place is free
        await refused("b")  # and this child has an envelope
        assert workers.alive == 1
    assert workers.observer.started("workers/a") == 0
    assert workers.got == ([("b", 1)] if runs else [])


@guarantees("A supervisor keeps nothing in memory for a key without a child", topic="Dynamic supervisors")
async def test_nothing_is_kept_of_a_finished_key() -> None:
    mailboxes: weakref.WeakSet[Mailbox[Any]] = weakref.WeakSet()

    async def start(context: Context) -> None:
        mailboxes.add(context.mailbox)

        async def handle(envelopes: list[Envelope[Any]]) -> None:
            if context.incarnation == 1 and envelopes[0].message == "crash":
                raise Boom
            if isinstance(envelopes[0].message, Question) and envelopes[0].message.text != "silence":
                envelopes[0].message.reply.send("yes")

        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    pool: DynamicSupervisor[Any] = DynamicSupervisor(
        "pool", start, mailbox_capacity=5, max_children=5, backoff=AT_ONCE, intensity=OFTEN
    )
    async with running(Supervisor("root", [ChildSpec("pool", pool.run)])):
        for number in range(100):
            await pool.deliver(f"handled {number}", "x")
            await pool.deliver(f"crashed {number}", "crash")
            assert await pool.ask(f"asked {number}", question("x"), PATIENCE_SECONDS) == "yes"
            with pytest.raises((AskTimeout, ActorDied)):
                await pool.ask(f"given up {number}", question("silence"), 0.0)
            await until(lambda: pool.snapshot().total_children == 0)
        gc.collect()
        assert not mailboxes
