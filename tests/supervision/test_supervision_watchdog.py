"""The watchdogs, on every backend: that they bite, not when."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import ChildSpec, Envelope, Mailbox, State, Supervisor, serve
from tests.supervision.harness import AT_ONCE, Context, Recorder, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees("An attempt that is not ready in time is cancelled and restarted", topic="Readiness")
@guarantees(
    "An attempt that is busy for too long without a heartbeat is cancelled and restarted",
    topic="Watchdog and unresponsive attempts",
)
@pytest.mark.parametrize("reason", ["hung", "start timeout"])
async def test_the_watchdog_cancels_hung_and_unready_attempts(reason: str) -> None:
    observer = Recorder()

    async def start(context: Context) -> None:
        if context.incarnation == 1:
            if reason == "hung":
                context.ready()
                context.heartbeat()
            await anyio.sleep_forever()
        context.ready()
        await context.wait_stopping()

    spec = ChildSpec("a", start, hang_seconds=0.02, start_timeout_seconds=0.02)
    async with running(Supervisor("root", [spec], backoff=AT_ONCE, observer=observer), wait_started=False):
        await until(lambda: observer.reasons("a"))
        assert observer.reasons("a")[0] == reason


@guarantees("A hang counts as a failed delivery", topic="Unacked envelopes and redelivery")
@guarantees("Hangs count towards `max_deliveries`", topic="Giving up after N deliveries")
async def test_an_envelope_whose_actor_hangs_is_given_up() -> None:
    mailbox: Mailbox[str] = Mailbox("a", 5, max_deliveries=2)
    given_up: list[tuple[str, int]] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        if envelopes[0].message == "tar":
            await anyio.sleep_forever()

    async def on_max_deliveries(envelope: Envelope[str]) -> None:
        given_up.append((envelope.message, envelope.attempts))

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=on_max_deliveries)

    spec = ChildSpec("a", start, hang_seconds=0.02, mailbox=mailbox)
    mailbox.send_nowait("tar")
    mailbox.send_nowait("water")
    async with running(Supervisor("root", [spec], backoff=AT_ONCE)):
        await until(lambda: mailbox.depth == 0)
    assert given_up == [("tar", 2)]


@guarantees(
    "After the end of an unresponsive attempt a new attempt starts, and the tree is healthy again",
    topic="Watchdog and unresponsive attempts",
)
async def test_an_unresponsive_attempt_is_reported_and_may_still_end() -> None:
    observer = Recorder()
    release = anyio.Event()

    async def start(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            with anyio.CancelScope(shield=True):
                await release.wait()
        await context.wait_stopping()

    root = Supervisor("root", [ChildSpec("a", start)], backoff=AT_ONCE, observer=observer, kill_grace_seconds=0.02)
    async with running(root):
        assert root.kill("a", "shot")
        await until(lambda: observer.of("unresponsive"))
        assert root.snapshot().children[0].state is State.UNRESPONSIVE
        assert not root.healthy
        release.set()
        await until(lambda: observer.started("a") == 2)
        assert root.healthy
    assert observer.reasons("a")[0] == "shot"
