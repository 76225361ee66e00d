"""Asks of an actor that backs off: on trio's clock, which jumps."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import (
    ActorDied,
    AskTimeout,
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    State,
    Supervisor,
    serve,
    serve_until_empty,
)
from tests.supervision.harness import Boom, Context, Question, fail_on_max_deliveries, question, running
from tests.supervision.timed import ON_TRIO
from tests.support.guarantees import guarantees

pytestmark = [pytest.mark.anyio, ON_TRIO]


class Answerers:
    """An actor that answers, and one per key; their first attempts crash, and they back off for ten seconds."""

    def __init__(self) -> None:
        backoff = Backoff(initial_seconds=10.0, maximum_seconds=10.0, jitter=0.0)
        self.caller_gone: list[str] = []
        self.mailbox: Mailbox[Question] = Mailbox("oracle", 10)

        async def handle_for(context: Context, envelopes: list[Envelope[Question]]) -> None:
            if context.incarnation == 1:
                raise Boom
            self.caller_gone.extend(envelope.message.text for envelope in envelopes if envelope.caller_gone)
            for envelope in envelopes:
                envelope.message.reply.send(f"{envelope.message.text} from {context.incarnation}")

        async def server(context: Context) -> None:
            await serve(
                context,
                lambda envelopes: handle_for(context, envelopes),
                limit=10,
                on_max_deliveries=fail_on_max_deliveries,
            )

        async def worker(context: Context) -> None:
            await serve_until_empty(
                context,
                lambda envelopes: handle_for(context, envelopes),
                limit=10,
                on_max_deliveries=fail_on_max_deliveries,
            )

        self.pool: DynamicSupervisor[Question] = DynamicSupervisor(
            "keyed", worker, mailbox_capacity=10, max_children=10, backoff=backoff
        )
        children = [ChildSpec("oracle", server, mailbox=self.mailbox), ChildSpec("pool", self.pool.run)]
        self.root = Supervisor("root", children, backoff=backoff)

    async def ask(self, where: str, text: str, seconds: float) -> str:
        if where == "oracle":
            return await self.mailbox.ask(question(text), seconds)
        return await self.pool.ask("key", question(text), seconds)

    def state(self, where: str) -> State:
        return dict(self.root.snapshot().iter_flat())[where].state


@guarantees("ActorDied names the actor by its path", topic="Asks")
@guarantees("An ask during a back-off is answered by the next attempt, or ends at its deadline", topic="Asks")
@pytest.mark.parametrize("where", ["oracle", "pool/key"])
async def test_an_ask_during_a_back_off_gets_an_answer_or_times_out(where: str) -> None:
    answerers = Answerers()
    ended: dict[str, tuple[float, str]] = {}

    async def ask(text: str, seconds: float) -> None:
        try:
            answer = await answerers.ask(where, text, seconds)
        except AskTimeout as error:
            answer = type(error).__name__
        ended[text] = (round(anyio.current_time() - began, 6), answer)

    async with running(answerers.root):
        began = anyio.current_time()
        with pytest.raises(ActorDied) as caught:
            await answerers.ask(where, "first", 1_000.0)
        assert (caught.value.actor, caught.value.reason) == (where, "Boom")
        assert answerers.state(where) is State.BACKING_OFF
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "patient", 1_000.0)
            tasks.start_soon(ask, "hasty", 3.0)
            await anyio.sleep(5)
            assert answerers.state(where) is State.BACKING_OFF
    assert ended == {"hasty": (3.0, "AskTimeout"), "patient": (10.0, "patient from 2")}
    assert sorted(answerers.caller_gone) == ["first", "hasty"]
