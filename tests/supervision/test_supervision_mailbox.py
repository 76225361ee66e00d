"""Mailboxes: capacity, back-pressure, acks, redelivery, closing."""

from __future__ import annotations

import math
from functools import partial

import anyio
import pytest

from bcs.supervision import Mailbox, MailboxFull
from tests.supervision.harness import DIED, Boom, texts
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees("`send_nowait` raises MailboxFull when the mailbox is full", topic="Mailboxes")
async def test_send_nowait_raises_when_the_mailbox_is_full() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 2)
    mailbox.send_nowait("a")
    mailbox.send_nowait("b")
    with pytest.raises(MailboxFull) as caught:
        mailbox.send_nowait("c")
    assert (caught.value.mailbox, caught.value.capacity) == ("m", 2)
    assert texts(mailbox) == ["a", "b"]


@guarantees("The capacity is at least one, and may be infinite", topic="Mailboxes")
async def test_an_unbounded_mailbox_is_never_full() -> None:
    mailbox: Mailbox[int] = Mailbox("m", math.inf)
    for number in range(10_000):
        mailbox.send_nowait(number)
    assert mailbox.depth == 10_000


@guarantees("The capacity is at least one, and may be infinite", topic="Mailboxes")
@pytest.mark.parametrize(("capacity", "deliveries"), [(0, 3), (3, 0)])
async def test_a_capacity_below_one_is_refused(capacity: int, deliveries: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Mailbox("m", capacity, deliveries)


@guarantees("`send` waits for room (back-pressure), and a sender's envelopes keep their order", topic="Mailboxes")
async def test_a_sender_waits_for_room_and_keeps_its_order() -> None:
    mailbox: Mailbox[int] = Mailbox("m", 2)
    received: list[int] = []

    async def send() -> None:
        for number in range(20):
            await mailbox.send(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert mailbox.depth == 2
        with anyio.fail_after(10):
            while len(received) < 20:
                envelopes = await mailbox.receive(3)
                assert len(envelopes) <= 3
                received += [envelope.message for envelope in envelopes]
                mailbox.ack(envelopes)
    assert received == list(range(20))
    assert mailbox.oldest_age_seconds(anyio.current_time()) == 0.0


@guarantees("A sender that gives up leaves nothing behind", topic="Mailboxes")
async def test_a_sender_that_gives_up_leaves_nothing_behind() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 1)
    mailbox.send_nowait("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.send, "b")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert texts(mailbox) == ["a"]
    assert texts(mailbox) == []
    assert mailbox.oldest_age_seconds(anyio.current_time() + 5) == 0.0


@guarantees("An envelope that gets room only after its sender waited wakes the receiver", topic="Mailboxes")
async def test_an_envelope_that_got_room_late_wakes_the_receiver() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 1)
    mailbox.send_nowait("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.send, "b")
        await anyio.lowlevel.checkpoint()
        # On asyncio the sender has found the mailbox full and gives way once; now there is room, and a receiver waits.
        assert texts(mailbox) == ["a"]
        with anyio.fail_after(5):
            await mailbox.arrival()
        assert texts(mailbox) == ["b"]


@guarantees("An arrival wakes every task that waits for the mailbox", topic="Mailboxes")
async def test_an_arrival_wakes_every_waiter() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 1)
    with anyio.fail_after(5):
        for news in (partial(mailbox.send_nowait, "a"), mailbox.wake, mailbox.close):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mailbox.arrival)
                tasks.start_soon(mailbox.arrival)
                await anyio.wait_all_tasks_blocked()
                news()


@guarantees(
    "An actor must ack all envelopes of one receive before the next receive",
    topic="Unacked envelopes and redelivery",
)
async def test_receive_raises_while_envelopes_are_unacked() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    for text in "abc":
        mailbox.send_nowait(text)
    envelopes = await mailbox.receive(2)
    assert [envelope.message for envelope in mailbox.unacked] == ["a", "b"]
    assert mailbox.depth == 3
    with pytest.raises(RuntimeError, match="not acked"):
        mailbox.receive_nowait()
    mailbox.ack(envelopes[:1])
    with pytest.raises(RuntimeError, match="not acked"):
        await mailbox.receive()
    mailbox.ack(envelopes)  # settling twice is fine
    assert mailbox.unacked == ()
    assert texts(mailbox) == ["c"]
    with pytest.raises(ValueError, match="limit"):
        mailbox.receive_nowait(0)


@guarantees(
    "Unacked envelopes are redelivered before new envelopes, with their old time of sending",
    topic="Unacked envelopes and redelivery",
)
@guarantees(
    "After a crash each unacked envelope may be the cause: its failed delivery is counted, the error is kept with "
    "it, and it is redelivered alone",
    topic="Unacked envelopes and redelivery",
)
async def test_unacked_envelopes_are_redelivered_first_and_one_at_a_time() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    for text in "abcd":
        mailbox.send_nowait(text)
    held = mailbox.receive_nowait(3)
    mailbox.ack(held[:1])
    error = Boom()
    mailbox.redeliver(DIED, failure_cause=error)
    assert (mailbox.unacked, mailbox.depth) == ((), 3)
    first = mailbox.receive_nowait(10)
    assert [(envelope.message, envelope.attempts, envelope.last_error) for envelope in first] == [("b", 1, error)]
    mailbox.redeliver(DIED, failure_cause=error)
    (again,) = mailbox.receive_nowait(10)
    assert (again.message, again.attempts) == ("b", 2)
    assert again.enqueued_at == held[1].enqueued_at
    mailbox.ack([again])
    (second,) = mailbox.receive_nowait(10)
    assert (second.message, second.attempts) == ("c", 1)
    mailbox.ack([second])
    (fresh,) = mailbox.receive_nowait(10)
    assert (fresh.message, fresh.attempts, fresh.last_error) == ("d", 0, None)


@guarantees(
    "Unacked envelopes that cannot have caused the end are redelivered together, and with new envelopes",
    topic="Unacked envelopes and redelivery",
)
async def test_unacked_envelopes_are_redelivered_together_after_a_kill() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    for text in "abc":
        mailbox.send_nowait(text)
    mailbox.receive_nowait(2)
    for _ in range(5):
        mailbox.redeliver(DIED)
        assert [(envelope.message, envelope.attempts) for envelope in mailbox.receive_nowait(2)] == [("a", 0), ("b", 0)]
    mailbox.redeliver(DIED)
    assert [envelope.message for envelope in mailbox.receive_nowait(3)] == ["a", "b", "c"]


@guarantees(
    "An envelope that may have caused a failure is redelivered alone, also after a later kill",
    topic="Unacked envelopes and redelivery",
)
async def test_an_envelope_that_may_have_caused_a_failure_comes_alone() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    for text in "ab":
        mailbox.send_nowait(text)
    mailbox.receive_nowait(2)
    mailbox.redeliver(DIED, failure_cause=Boom())
    (first,) = mailbox.receive_nowait(5)
    mailbox.redeliver(DIED)
    assert [(envelope.message, envelope.attempts) for envelope in mailbox.receive_nowait(5)] == [("a", 1)]
    mailbox.ack(mailbox.unacked)
    assert [(envelope.message, envelope.attempts) for envelope in mailbox.receive_nowait(5)] == [("b", 1)]
    assert first.message == "a"


@guarantees("Unacked and redelivered envelopes do not count against the capacity", topic="Mailboxes")
async def test_redelivery_does_not_need_room() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 1)
    mailbox.send_nowait("a")
    mailbox.receive_nowait()
    mailbox.send_nowait("b")
    mailbox.redeliver(DIED, failure_cause=Boom())
    assert mailbox.depth == 2
    assert texts(mailbox) + texts(mailbox) == ["a", "b"]


@guarantees(
    "The age of a mailbox is that of its oldest envelope, whether queued, unacked or waiting for redelivery",
    topic="Snapshot",
)
async def test_the_age_is_that_of_the_oldest_envelope() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    mailbox.send_nowait("a")
    (envelope,) = mailbox.receive_nowait()
    # The two envelopes must have different ages.
    await anyio.sleep(0.002)
    mailbox.send_nowait("b")
    now = envelope.enqueued_at + 7
    assert mailbox.oldest_age_seconds(now) == pytest.approx(7)
    mailbox.redeliver(DIED, failure_cause=Boom())
    assert mailbox.oldest_age_seconds(now) == pytest.approx(7)
    assert texts(mailbox) == ["a"]
    assert 0 < mailbox.oldest_age_seconds(now) < 7
    mailbox.close()
    assert 0 < mailbox.oldest_age_seconds(now) < 7
