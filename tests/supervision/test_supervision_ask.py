"""An ask always ends: with a reply, an error, the actor's death, its deadline, or the end of the mailbox."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorDied,
    AskTimeout,
    ChildSpec,
    Envelope,
    Mailbox,
    MailboxClosed,
    MailboxFull,
    Reply,
    Supervisor,
    serve,
)
from tests.supervision.harness import (
    AT_ONCE,
    DIED,
    OFTEN,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Question,
    Recorder,
    fail_on_max_deliveries,
    question,
    raises_one,
    running,
    until,
)
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


def oracle_spec(mailbox: Mailbox[Question]) -> ChildSpec:
    """An actor that echoes, fails, crashes, or says nothing."""

    async def handle(envelopes: list[Envelope[Question]]) -> None:
        for envelope in envelopes:
            text, reply = envelope.message.text, envelope.message.reply
            if envelope.caller_gone:
                continue
            if text == "fail":
                reply.fail(Boom("as asked"))
            elif text == "die":
                raise Boom
            elif text == "hold":
                await anyio.sleep_forever()
            elif text != "silence":
                reply.send(text.upper())

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=fail_on_max_deliveries)

    return ChildSpec("oracle", start, mailbox=mailbox)


def oracle() -> tuple[Supervisor, Mailbox[Question]]:
    mailbox: Mailbox[Question] = Mailbox("oracle", 1_000)
    return Supervisor("root", [oracle_spec(mailbox)], backoff=AT_ONCE, intensity=OFTEN), mailbox


@guarantees("An ask returns the reply", topic="Asks")
async def test_an_ask_returns_the_reply() -> None:
    root, mailbox = oracle()
    async with running(root):
        assert await mailbox.ask(question("hello"), PATIENCE_SECONDS) == "HELLO"
        assert mailbox.pending_asks == 0


@guarantees("An ask raises the error that the actor set with `Reply.fail`; the actor does not crash", topic="Asks")
async def test_an_ask_raises_the_error_that_the_actor_set() -> None:
    root, mailbox = oracle()
    async with running(root):
        with pytest.raises(Boom, match="as asked"):
            await mailbox.ask(question("fail"), PATIENCE_SECONDS)
        assert root.snapshot().children[0].restarts == 0


@guarantees("An ask raises ActorDied when the actor crashes; the next attempt answers again", topic="Asks")
async def test_an_ask_fails_when_the_actor_dies_and_the_next_attempt_answers() -> None:
    root, mailbox = oracle()
    async with running(root):
        with pytest.raises(ActorDied, match="Boom") as caught:
            await mailbox.ask(question("die"), PATIENCE_SECONDS)
        assert caught.value.actor == "oracle"
        assert await mailbox.ask(question("hello"), PATIENCE_SECONDS) == "HELLO"


@guarantees(
    "An ask raises AskTimeout after the deadline; the envelope stays with `caller_gone`, and a late reply is ignored",
    topic="Asks",
)
async def test_an_ask_that_times_out_leaves_an_envelope_without_caller() -> None:
    root, mailbox = oracle()
    async with running(root):
        with pytest.raises(AskTimeout) as caught:
            await mailbox.ask(question("silence"), 0.02)
        assert caught.value.timeout_seconds == 0.02
    waiting: Mailbox[Question] = Mailbox("m", 5)
    with pytest.raises(AskTimeout):
        await waiting.ask(question("x"), 0.0)
    (envelope,) = waiting.receive_nowait()
    assert envelope.caller_gone
    assert not envelope.message.reply.send("too late")


@guarantees("The caller's cancellation ends an ask, and leaves the envelope with `caller_gone`", topic="Asks")
async def test_a_cancelled_ask_leaves_an_envelope_without_caller() -> None:
    mailbox: Mailbox[Question] = Mailbox("m", 5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.ask, question("x"), PATIENCE_SECONDS)
        await anyio.wait_all_tasks_blocked()
        (envelope,) = mailbox.receive_nowait()
        assert not envelope.caller_gone
        assert mailbox.pending_asks == 1
        tasks.cancel_scope.cancel()
    assert envelope.caller_gone
    assert mailbox.pending_asks == 0
    mailbox.redeliver(DIED, failure_cause=Boom())  # nobody waits: nothing to fail, nothing raised


@guarantees("An ask of a full mailbox raises MailboxFull at once", topic="Asks")
async def test_an_ask_of_a_full_mailbox_fails_at_once() -> None:
    mailbox: Mailbox[Any] = Mailbox("m", 1)
    mailbox.send_nowait("a")
    with pytest.raises(MailboxFull):
        await mailbox.ask(question("x"), PATIENCE_SECONDS)
    assert mailbox.depth == 1


@guarantees("An ask raises MailboxClosed if the mailbox is closed before the ask, or while the ask waits", topic="Asks")
async def test_an_ask_fails_when_the_mailbox_closes_before_or_during_it() -> None:
    mailbox: Mailbox[Question] = Mailbox("m", 1)
    with raises_one(MailboxClosed):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mailbox.ask, question("x"), PATIENCE_SECONDS)
            await anyio.wait_all_tasks_blocked()
            mailbox.close()
    with pytest.raises(MailboxClosed):
        await mailbox.ask(question("x"), PATIENCE_SECONDS)


@guarantees(
    "An ask raises ActorDied when the actor or its supervisor is killed, and when the tree's time to stop is over; "
    "also if the actor has not received the envelope yet",
    topic="Asks",
)
@guarantees(
    "All pending asks fail together: when the observer is notified of the actor's end, five hundred asks have "
    "raised ActorDied",
    topic="Asks",
)
@guarantees("ActorDied names the actor by its path", topic="Asks")
@pytest.mark.parametrize("end", ["crash", "kill", "kill parent", "tree"])
async def test_five_hundred_asks_all_end_with_their_actor_at_once(end: str) -> None:
    mailbox: Mailbox[Question] = Mailbox("oracle", 1_000)
    replies: list[Reply[str]] = []
    settled_before: list[int] = []
    settled_at_the_end: list[int] = []
    ended: list[tuple[type[BaseException], str, float]] = []
    last_words = anyio.Event()

    class Watcher(Recorder):
        def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
            if path == "inner/oracle":
                settled_at_the_end.append(sum(reply.settled for reply in replies))

    async def start(context: Context) -> None:
        context.ready()
        await context.receive()
        if context.incarnation == 1:
            await last_words.wait()
            settled_before.append(sum(reply.settled for reply in replies))
            raise Boom
        await anyio.sleep_forever()

    def build(reply: Reply[str]) -> Question:
        replies.append(reply)
        return Question("x", reply)

    async def ask() -> None:
        try:
            await mailbox.ask(build, 1_000.0)
        except (ActorDied, MailboxClosed) as error:
            ended.append((type(error), getattr(error, "actor", ""), anyio.current_time()))

    inner = Supervisor("inner", [ChildSpec("oracle", start, mailbox=mailbox)], backoff=AT_ONCE)
    root = Supervisor("root", [ChildSpec("inner", inner.run)], backoff=AT_ONCE, observer=Watcher())
    async with running(root, shutdown_seconds=0.0) as tree, anyio.create_task_group() as tasks:
        for _ in range(500):
            tasks.start_soon(ask)
        await until(lambda: mailbox.depth == 500 and mailbox.unacked)
        if end == "tree":
            tree.stop.set()
        elif end == "crash":
            last_words.set()
        else:
            assert root.kill("inner/oracle" if end == "kill" else "inner")
        await until(lambda: len(ended) == 500)
    # None had ended before the actor did, and all of them had when that was reported: no turn of the loop between.
    assert settled_before == ([0] if end == "crash" else [])
    assert settled_at_the_end[0] == 500
    assert {(kind, actor) for kind, actor, _ in ended} == {(ActorDied, "inner/oracle")}


@guarantees("An ask raises MailboxClosed if the mailbox is closed before the ask, or while the ask waits", topic="Asks")
async def test_an_ask_of_a_tree_that_ended_is_refused() -> None:
    root, mailbox = oracle()
    async with running(root):
        pass
    with pytest.raises(MailboxClosed):
        await mailbox.ask(question("x"), PATIENCE_SECONDS)


@guarantees("The first answer wins", topic="Asks")
async def test_the_first_answer_wins() -> None:
    reply: Reply[int] = Reply()
    with pytest.raises(RuntimeError, match="not settled"):
        reply.result()
    assert not reply.settled
    assert reply.send(1)
    assert not reply.send(2)
    assert not reply.fail(Boom())
    assert reply.settled
    assert await reply.wait() == 1
    failed: Reply[int] = Reply()
    assert failed.fail(Boom())
    assert not failed.send(1)
    with pytest.raises(Boom):
        await failed.wait()


@guarantees("Several tasks may wait for one reply", topic="Asks")
async def test_several_may_wait_for_one_reply() -> None:
    reply: Reply[int] = Reply()
    got: list[int] = []

    async def wait() -> None:
        got.append(await reply.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        reply.send(7)
    assert got == [7, 7]
