"""Whoever is killed, and however often: every message is handled, and every ask ends."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorDied,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    MailboxFull,
    Strategy,
    Supervisor,
    serve,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    Boom,
    Context,
    Question,
    fail_on_max_deliveries,
    question,
    running,
    until,
)
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio

MESSAGES = 150
KILLS = 60


@guarantees("Every message is handled, whichever actors are killed", topic="Mailboxes")
@pytest.mark.parametrize(("seed", "strategy"), list(enumerate(Strategy)))
async def test_actors_killed_at_random_lose_nothing(seed: int, strategy: Strategy) -> None:
    chance = random.Random(seed)
    inbox: Mailbox[Any] = Mailbox("router", 8, max_deliveries=10**9)
    handled: set[int] = set()
    sent: set[int] = set()
    answers: list[str] = []

    async def pause() -> None:
        for _ in range(chance.randint(0, 3)):
            await anyio.lowlevel.checkpoint()

    async def work(envelopes: list[Envelope[Any]]) -> None:
        await pause()
        if chance.random() < 0.05:
            raise Boom
        handled.update(envelope.message for envelope in envelopes)

    async def worker(context: Context) -> None:
        await serve_until_empty(context, work, limit=4, on_max_deliveries=fail_on_max_deliveries)

    workers: DynamicSupervisor[int] = DynamicSupervisor(
        "workers",
        worker,
        mailbox_capacity=2,
        max_children=3,
        max_running=2,
        max_deliveries=10**9,
        backoff=AT_ONCE,
        intensity=OFTEN,
    )

    async def route(envelopes: list[Envelope[Any]]) -> None:
        for envelope in envelopes:
            await pause()
            if isinstance(envelope.message, Question):
                envelope.message.reply.send("yes")
            else:
                await workers.deliver(str(envelope.message % 7), envelope.message)

    async def router(context: Context) -> None:
        await serve(context, route, limit=3, on_max_deliveries=fail_on_max_deliveries)

    options: dict[str, Any] = {"strategy": strategy, "backoff": AT_ONCE, "intensity": OFTEN}
    # A router that is to stop with its group may be waiting for workers that are down: give it little time.
    route_spec = ChildSpec("router", router, mailbox=inbox, shutdown_seconds=0.01)
    batches = Supervisor("batches", [ChildSpec("workers", workers.run), route_spec], **options)
    root = Supervisor("root", [ChildSpec("batches", batches.run)], **options)

    killed = 0

    async def assassin() -> None:
        nonlocal killed
        while killed < KILLS:
            for _ in range(chance.randint(1, 40)):
                await anyio.lowlevel.checkpoint()
            path = chance.choice([path for path, _ in root.snapshot().iter_flat()])
            killed += root.kill(path)

    async def send() -> None:
        number = 0
        while killed < KILLS or number < MESSAGES:
            await inbox.send(number)
            sent.add(number)
            number += 1
            await pause()

    async def ask() -> None:
        while killed < KILLS or answers.count("yes") < 10:
            try:
                answers.append(await inbox.ask(question("x"), 1_000.0))
            except (ActorDied, MailboxFull) as error:
                answers.append(type(error).__name__)
            await pause()

    async with running(root):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(assassin)
            tasks.start_soon(send)
            tasks.start_soon(ask)
        await until(lambda: inbox.depth == 0 and workers.snapshot().total_children == 0)
    assert handled == sent
    assert len(sent) >= MESSAGES
    assert "ActorDied" in answers
