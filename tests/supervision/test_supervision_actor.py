"""What an attempt is given, and the loop that serves a mailbox."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from bcs.supervision import ActorContext, ChildSpec, Envelope, Mailbox, Supervisor, serve, serve_until_empty
from tests.supervision.harness import AT_ONCE, DIED, OFTEN, Boom, Context, fail_on_max_deliveries, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees("An attempt reports ready once; a second report has no effect", topic="Readiness")
async def test_ready_is_reported_once() -> None:
    reports: list[str] = []
    context: Context = ActorContext("a", on_ready=lambda: reports.append("ready"))
    assert context.ready_at is None
    context.ready()
    context.ready()
    assert reports == ["ready"]


@guarantees("An actor whose spec has no mailbox gets a RuntimeError when it uses its mailbox", topic="Mailboxes")
async def test_the_mailbox_of_an_actor_without_one_raises() -> None:
    context: Context = ActorContext("a")
    with pytest.raises(RuntimeError, match="no mailbox"):
        await context.receive()


@guarantees(
    "Receiving envelopes counts as a heartbeat; waiting for envelopes marks the actor idle",
    topic="Watchdog and unresponsive attempts",
)
async def test_receive_sends_a_heartbeat_with_envelopes_and_is_idle_without() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    context = ActorContext("a", mailbox=mailbox)
    mailbox.send_nowait("x")
    context.ack(await context.receive())
    assert context.busy_since is not None
    assert context.acked == 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(context.receive)
        await anyio.wait_all_tasks_blocked()
        assert context.busy_since is None
        mailbox.send_nowait("y")
        await until(lambda: mailbox.unacked)
        assert context.busy_since is not None
    with pytest.raises(RuntimeError, match="not acked"):
        await context.receive()
    context.ack(mailbox.unacked)
    assert context.receive_nowait() == []
    assert context.busy_since is None


@guarantees("A stop wakes an actor that waits for envelopes", topic="Start and stop")
async def test_a_stop_wakes_a_waiting_receive() -> None:
    context: Context = ActorContext("a", mailbox=Mailbox("m", 5))
    async with anyio.create_task_group() as tasks:
        got: list[Any] = ["nothing yet"]

        async def receive() -> None:
            with anyio.fail_after(5):
                got[0] = await context.receive()

        tasks.start_soon(receive)
        tasks.start_soon(context.wait_stopping)
        await anyio.wait_all_tasks_blocked()
        assert not context.stopping
        context.request_stop()
    assert got == [[]]
    assert context.stopping


@guarantees("A stop lets the children empty their mailboxes, and then closes the mailboxes", topic="Start and stop")
async def test_a_stop_drains_the_mailbox_first() -> None:
    mailbox: Mailbox[int] = Mailbox("m", 10)
    context = ActorContext("a", mailbox=mailbox)
    for number in range(5):
        mailbox.send_nowait(number)
    context.request_stop()
    drained: list[int] = []
    with anyio.fail_after(5):
        while envelopes := await context.receive(2):
            drained += [envelope.message for envelope in envelopes]
            context.ack(envelopes)
    assert drained == [0, 1, 2, 3, 4]


@guarantees("Closing a mailbox ends the wait of its receiver", topic="Mailboxes")
async def test_a_closed_mailbox_ends_receive_when_it_is_empty() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    context = ActorContext("a", mailbox=mailbox)
    mailbox.send_nowait("x")
    mailbox.close()
    with anyio.fail_after(5):
        context.ack(await context.receive())
        assert await context.receive() == []


@guarantees(
    "A handler receives all waiting envelopes as one list, up to a limit, and may ack some of them before it returns",
    topic="Unacked envelopes and redelivery",
)
async def test_serve_passes_the_waiting_envelopes_as_one_list() -> None:
    mailbox: Mailbox[int] = Mailbox("m", 10)
    context = ActorContext("a", mailbox=mailbox)
    for number in range(5):
        mailbox.send_nowait(number)
    context.request_stop()
    lists: list[list[int]] = []

    async def handle(envelopes: list[Envelope[int]]) -> None:
        assert context.ready_at is not None
        lists.append([envelope.message for envelope in envelopes])
        context.ack(envelopes[:1])  # a handler may ack as it goes

    with anyio.fail_after(5):
        await serve(context, handle, limit=3, on_max_deliveries=fail_on_max_deliveries)
    assert lists == [[0, 1, 2], [3, 4]]
    assert mailbox.depth == 0


async def test_an_envelope_delivered_too_often_is_given_up_unhandled() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 10, max_deliveries=2)
    for text in ("poison", "good"):
        mailbox.send_nowait(text)
    for _ in range(2):
        mailbox.receive_nowait()
        mailbox.redeliver(DIED, failure_cause=Boom())
    context: Context = ActorContext("m", mailbox=mailbox)
    context.request_stop()
    handled: list[str] = []
    given_up: list[str] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        handled.extend(envelope.message for envelope in envelopes)

    async def on_max_deliveries(envelope: Envelope[str]) -> None:
        given_up.append(envelope.message)

    with anyio.fail_after(5):
        await serve(context, handle, on_max_deliveries=on_max_deliveries)
    assert (handled, given_up) == (["good"], ["poison"])


@guarantees(
    "After a crash each unacked envelope may be the cause: its failed delivery is counted, the error is kept with "
    "it, and it is redelivered alone",
    topic="Unacked envelopes and redelivery",
)
@guarantees(
    "After `max_deliveries` deliveries that ended in a crash or a hang, `serve` passes the envelope alone, with the"
    " last error, to `on_max_deliveries`",
    topic="Giving up after N deliveries",
)
@guarantees(
    "If `max_deliveries` is at least two, the envelopes that were unacked together with a poisonous one are handled",
    topic="Giving up after N deliveries",
)
@pytest.mark.parametrize("deliveries", [1, 2, 5])
async def test_a_poisonous_envelope_comes_alone_and_is_given_up(deliveries: int) -> None:
    mailbox: Mailbox[str] = Mailbox("m", 10, max_deliveries=deliveries)
    seen: list[list[str]] = []
    handled: list[str] = []
    given_up: list[Envelope[str]] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        seen.append([envelope.message for envelope in envelopes])
        if "poison" in seen[-1]:
            raise Boom("poison")
        handled.extend(seen[-1])

    async def on_max_deliveries(envelope: Envelope[str]) -> None:
        given_up.append(envelope)

    async def start(context: Context) -> None:
        await serve(context, handle, limit=10, on_max_deliveries=on_max_deliveries)

    for text in ("a", "poison", "b"):
        mailbox.send_nowait(text)
    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, intensity=OFTEN)
    async with running(root):
        await until(lambda: mailbox.depth == 0)
        assert root.snapshot().children[0].incarnation == 1 + deliveries
    assert seen[0] == ["a", "poison", "b"]
    assert all(len(envelopes) == 1 for envelopes in seen[1:])
    assert seen.count(["poison"]) == deliveries - 1
    assert [(envelope.message, envelope.attempts) for envelope in given_up if envelope.message == "poison"] == [
        ("poison", deliveries)
    ]
    assert isinstance(given_up[-1].last_error, Boom)
    if deliveries > 1:
        assert handled == ["a", "b"]
        assert len(given_up) == 1


@guarantees("If `on_max_deliveries` fails, it is called again", topic="Giving up after N deliveries")
async def test_giving_up_is_retried_after_a_failure() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 10, max_deliveries=1)
    tries: list[int] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        raise Boom

    async def on_max_deliveries(envelope: Envelope[str]) -> None:
        tries.append(envelope.attempts)
        if len(tries) < 3:
            raise Boom

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=on_max_deliveries)

    mailbox.send_nowait("x")
    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, intensity=OFTEN)
    async with running(root):
        await until(lambda: mailbox.depth == 0)
    assert tries == [1, 2, 3]


@guarantees(
    "A kill, a start timeout and a shutdown timeout never count as a failed delivery",
    topic="Unacked envelopes and redelivery",
)
@guarantees("Kills do not count towards `max_deliveries`", topic="Giving up after N deliveries")
async def test_an_envelope_is_never_given_up_for_kills() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 10, max_deliveries=1)
    taken: list[int] = []
    given_up: list[str] = []
    let_pass = anyio.Event()

    async def handle(envelopes: list[Envelope[str]]) -> None:
        taken.append(envelopes[0].attempts)
        await let_pass.wait()

    async def on_max_deliveries(envelope: Envelope[str]) -> None:
        given_up.append(envelope.message)

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=on_max_deliveries)

    def more_than(count: int) -> bool:
        return len(taken) > count

    mailbox.send_nowait("x")
    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)], backoff=AT_ONCE, intensity=OFTEN)
    async with running(root):
        await until(lambda: taken)
        for before in (1, 2, 3, 4):
            assert root.kill("m")
            await until(partial(more_than, before))
        let_pass.set()
        await until(lambda: mailbox.depth == 0)
    assert taken == [0, 0, 0, 0, 0]
    assert given_up == []


@guarantees(
    "What arrives during the wait of `before_receive` is received together with the earlier envelopes",
    topic="Dynamic supervisors",
)
async def test_what_arrives_before_the_receive_is_handled_in_the_same_call() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    handled: list[list[str]] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        handled.append([envelope.message for envelope in envelopes])

    async def before_receive() -> None:
        mailbox.send_nowait("later")

    mailbox.send_nowait("first")
    await serve_until_empty(
        ActorContext("a", mailbox=mailbox),
        handle,
        limit=2,
        on_max_deliveries=fail_on_max_deliveries,
        before_receive=before_receive,
    )
    assert handled == [["first", "later"]]
