"""What an end, an observer, or an early kill leaves behind."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import ActorDied, ChildSpec, Mailbox, Supervisor
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Puppet,
    Question,
    Recorder,
    question,
    running,
    until,
)
from tests.support.guarantees import guarantees


@guarantees(
    "The unacked envelopes are queued for redelivery before the observer is notified of the end",
    topic="Unacked envelopes and redelivery",
)
@guarantees("A kill ends one attempt; a second kill of the same attempt returns False", topic="Kill by path")
@pytest.mark.anyio
async def test_envelopes_are_requeued_and_asks_fail_before_the_end_is_reported() -> None:
    mailbox: Mailbox[Question] = Mailbox("m", 5)
    seen: list[tuple[int, bool]] = []

    class Watcher(Recorder):
        def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
            super().actor_ended(path, incarnation, reason, error)
            seen.append((len(mailbox.unacked), replies[0].settled))

    async def start(context: Context) -> None:
        context.ready()
        envelopes = await context.receive()
        if envelopes:
            replies.append(envelopes[0].message.reply)
            await anyio.sleep_forever()

    replies: list[Any] = []
    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, observer=Watcher())
    async with running(root, shutdown_seconds=0.0), anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(ActorDied, match="shot"):
                await mailbox.ask(question("x"), PATIENCE_SECONDS)

        tasks.start_soon(ask)
        await until(lambda: mailbox.unacked)
        assert root.kill("m", "shot")
        assert not root.kill("m", "shot again")
    assert seen[0] == (0, True)


@guarantees("Errors of an observer are logged and stop no actor", topic="Observer")
@pytest.mark.anyio
async def test_an_observer_that_fails_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def actor_started(self, path: str, incarnation: int) -> None:
            raise Boom

        def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
            raise Boom

    puppet = Puppet("a")
    root = Supervisor("root", [puppet.spec()], backoff=AT_ONCE, intensity=OFTEN, observer=Broken())
    async with running(root):
        puppet.crash()
        await until(lambda: puppet.attempts == 2)
    assert caplog.text.count("an observer failed") == 4


@guarantees("An attempt that is killed before it began receives no envelope", topic="Unacked envelopes and redelivery")
@pytest.mark.anyio
async def test_an_attempt_killed_before_it_began_receives_nothing() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    taken: list[int] = []
    hits: list[bool] = []

    async def start(context: Context) -> None:
        context.ready()
        while envelopes := context.receive_nowait():
            taken.append(envelopes[0].attempts)
            await anyio.lowlevel.checkpoint()
            context.ack(envelopes)
        await context.wait_stopping()

    class Assassin(Recorder):
        def actor_started(self, path: str, incarnation: int) -> None:
            super().actor_started(path, incarnation)
            if incarnation == 1:
                hits.append(root.kill("m"))

    mailbox.send_nowait("x")
    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, observer=Assassin())
    async with running(root):
        await until(lambda: mailbox.depth == 0)
    assert (hits, taken) == ([True], [0])
