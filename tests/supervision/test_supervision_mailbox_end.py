"""The end of a mailbox, and of those who wait at it."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator

import anyio
import pytest

from bcs.supervision import Mailbox, MailboxClosed
from tests.supervision.harness import DIED, Boom, texts, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "A closed mailbox refuses new envelopes, also those of waiting senders, and still delivers the remaining ones",
    topic="Mailboxes",
)
async def test_a_closed_mailbox_refuses_envelopes_and_delivers_the_rest() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 2)
    mailbox.send_nowait("a")
    mailbox.send_nowait("b")
    refused: list[str] = []

    async def send() -> None:
        try:
            await mailbox.send("c")
        except MailboxClosed as error:
            refused.append(error.mailbox)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        mailbox.close()
    assert refused == ["m"]
    for _ in range(2):
        with pytest.raises(MailboxClosed):
            mailbox.send_nowait("d")
        with pytest.raises(MailboxClosed):
            await mailbox.send("d")
        mailbox.close()
    assert mailbox.depth == 2
    assert [envelope.message for envelope in await mailbox.receive(1)] == ["a"]
    mailbox.redeliver(DIED, failure_cause=Boom())
    assert texts(mailbox) + texts(mailbox) == ["a", "b"]
    with pytest.raises(MailboxClosed):
        await mailbox.receive()


@guarantees("Closing a mailbox ends the wait of its receiver", topic="Mailboxes")
async def test_closing_ends_a_waiting_receive() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 2)
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            with anyio.fail_after(5), pytest.raises(MailboxClosed):
                await mailbox.receive()

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        mailbox.close()


@pytest.fixture
def own_garbage() -> Iterator[None]:
    """Only what the test itself leaves is collected, at the threshold that it sets."""
    before = gc.get_threshold()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


# A collection in the middle of the construction changes the order in which the collector finalizes the cycle.
@guarantees("A mailbox causes no warning when it is garbage-collected, closed or not", topic="Mailboxes")
@pytest.mark.usefixtures("own_garbage")
@pytest.mark.parametrize("objects", [700, *range(1, 12)])
@pytest.mark.parametrize("closed", [True, False])
async def test_dropping_a_mailbox_warns_of_nothing(closed: bool, objects: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.set_threshold(objects)
        mailbox: Mailbox[object] = Mailbox("m", 2)
        mailbox.send_nowait(mailbox)  # a cycle, for the collector to break
        if closed:
            mailbox.close()
        del mailbox
        gc.collect()
    assert not [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]


@guarantees("Cancelled sends and receives lose and duplicate nothing", topic="Mailboxes")
@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_receives_and_sends_lose_and_duplicate_nothing(seed: int) -> None:
    chance = random.Random(seed)
    mailbox: Mailbox[int] = Mailbox("m", 3)
    sent: list[int] = []
    received: list[int] = []

    async def send(first: int) -> None:
        for number in range(first, first + 150):
            while True:
                with anyio.CancelScope() as scope:
                    if chance.random() < 0.3:
                        scope.cancel()
                    await mailbox.send(number)
                    sent.append(number)
                if number in sent:
                    break
                await anyio.lowlevel.checkpoint()

    async def disturb() -> None:
        while len(received) < 450:
            for scope in scopes:
                if chance.random() < 0.4:
                    scope.cancel()
            await anyio.lowlevel.checkpoint()

    scopes: set[anyio.CancelScope] = set()
    async with anyio.create_task_group() as tasks:
        for sender in range(3):
            tasks.start_soon(send, sender * 150)
        tasks.start_soon(disturb)
        with anyio.fail_after(30):
            while len(received) < 450:
                with anyio.CancelScope() as scope:
                    scopes.add(scope)
                    envelopes = await mailbox.receive(chance.randint(1, 4))
                    received += [envelope.message for envelope in envelopes]
                    mailbox.ack(envelopes)
                scopes.discard(scope)
                assert not mailbox.unacked
    assert sorted(received) == sorted(sent) == list(range(450))
    for sender in range(3):
        own = [number for number in received if number // 150 == sender]
        assert own == sorted(own)
    await until(lambda: mailbox.depth == 0)
