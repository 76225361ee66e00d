"""When a supervisor gives up, and what lasts beyond that."""

from __future__ import annotations

import pytest

from bcs.supervision import (
    ChildSpec,
    Mailbox,
    RestartIntensity,
    RestartIntensityExceeded,
    Strategy,
    Supervisor,
)
from tests.supervision.harness import AT_ONCE, OFTEN, Boom, Context, Recorder, puppets, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "A supervisor that gives up stops its children and raises RestartIntensityExceeded with the last error",
    topic="Restart intensity and escalation",
)
@guarantees('An observer is notified when a supervisor gives up; the root\'s path is ""', topic="Observer")
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_the_root_gives_up_after_too_many_restarts(strategy: Strategy) -> None:
    diary, (a, b, c) = puppets("abc")
    b.crash_on_start = 100
    observer = Recorder()
    root = Supervisor(
        "root",
        [a.spec(), b.spec(), c.spec()],
        strategy=strategy,
        intensity=RestartIntensity(3, 60.0),
        backoff=AT_ONCE,
        observer=observer,
    )
    async with running(root, wait_started=False) as tree:
        await until(tree.ended.is_set)
    error = tree.error
    assert isinstance(error, RestartIntensityExceeded)
    assert (error.supervisor, error.restarts, error.period_seconds, error.last_error) == ("root", 3, 60.0, "Boom: b")
    assert b.attempts == 4
    assert (diary[-1], c.attempts) == ("-a", 0)
    assert observer.of("exceeded") == [("",)]
    assert "RestartIntensityExceeded" in (root.snapshot().last_error or "")


@guarantees(
    "A parent handles the end of a supervisor that gave up as a crash, and restarts that supervisor with a count of"
    " zero",
    topic="Restart intensity and escalation",
)
@guarantees("A supervisor that is restarted starts all its children again", topic="Nested trees")
async def test_giving_up_escalates_and_the_parent_restarts_with_a_fresh_count() -> None:
    diary, (outside, a, b) = puppets("oab")
    b.crash_on_start = 5
    observer = Recorder()
    inner = Supervisor("inner", [a.spec(), b.spec()], intensity=RestartIntensity(1, 60.0), backoff=AT_ONCE)
    root = Supervisor("root", [outside.spec(), ChildSpec("inner", inner.run)], backoff=AT_ONCE, observer=observer)
    async with running(root):
        assert (outside.attempts, a.attempts, b.attempts) == (1, 3, 6)
        node = root.snapshot().children[1]
        assert (node.incarnation, node.restarts) == (3, 2)
        assert node.last_error is not None
        assert node.last_error.startswith("RestartIntensityExceeded: inner")
        assert [child.incarnation for child in node.children] == [3, 6]
    assert observer.of("exceeded") == [("inner",)] * 2
    assert diary[:9] == ["+o", "+a", "+b", "-b", "+b", "-b", "-a", "+a", "+b"]


@guarantees(
    "The failure of a supervisor that gives up escalates level by level to the root",
    topic="Restart intensity and escalation",
)
async def test_escalation_reaches_the_root_through_every_level() -> None:
    _, (a,) = puppets("a")
    a.crash_on_start = 1000
    few = RestartIntensity(1, 60.0)
    inner = Supervisor("inner", [a.spec()], intensity=few, backoff=AT_ONCE)
    middle = Supervisor("middle", [ChildSpec("inner", inner.run)], intensity=few, backoff=AT_ONCE)
    root = Supervisor("root", [ChildSpec("middle", middle.run)], intensity=few, backoff=AT_ONCE)
    async with running(root, wait_started=False) as tree:
        await until(tree.ended.is_set)
    assert isinstance(tree.error, RestartIntensityExceeded)
    assert tree.error.supervisor == "root"
    assert a.attempts == 2**3


@guarantees("A mailbox outlives its actor and keeps the queued and the unacked envelopes", topic="Mailboxes")
async def test_the_mailbox_keeps_queued_and_unacked_envelopes_after_a_crash() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 10)
    seen: list[tuple[str, int, int]] = []

    async def start(context: Context) -> None:
        context.ready()
        while envelopes := await context.receive():
            seen.append((envelopes[0].message, envelopes[0].attempts, context.incarnation))
            if context.incarnation == 1:
                raise Boom
            context.ack(envelopes)

    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, intensity=OFTEN)
    for text in "abc":
        mailbox.send_nowait(text)
    async with running(root):
        await until(lambda: mailbox.depth == 0)
    assert seen == [("a", 0, 1), ("a", 1, 2), ("b", 0, 2), ("c", 0, 2)]
