"""A message that an operator orders to skip becomes a dead letter, in any state of the message."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from bcs.domain.history import Position
from bcs.domain.skips import SkipOrder, SkipOutcome, WaitingSkip
from bcs.observability.failpoints import FailPoint
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.skips import RedisSkips
from bcs.wire import topics
from tests.support.commands import bcs
from tests.support.events import Event, registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

TOPIC = topics.SPELLCHECK_COMPLETED


@pytest.fixture
def skips(gateway: RedisGateway, redis_key_prefix: str) -> RedisSkips:
    return RedisSkips(gateway, key_prefix=redis_key_prefix)


@pytest.fixture
def settings(kafka_bootstrap_servers: str, redis_url: str, redis_key_prefix: str) -> dict[str, str]:
    """Of a service that reads these orders."""
    return {
        "redis_url": redis_url,
        "redis_key_prefix": redis_key_prefix,
        "kafka_bootstrap_servers": kafka_bootstrap_servers,
    }


def order(offset: int, partition: int = 0, reason: str = "it is wrong") -> SkipOrder:
    return SkipOrder(Position(TOPIC, partition, offset), reason, "somebody@somewhere", "2026-05-03T08:00:00Z")


async def outcome_of(skips: RedisSkips, ordered: SkipOrder) -> SkipOutcome | None:
    [*events] = [event for event in await skips.history(100) if event.order == ordered]
    return events[0].outcome if events and events[0].outcome is not SkipOutcome.ORDERED else None


async def letters_of(platform: Platform, batch: str) -> list[dict[str, object]]:
    return values(await platform.messages(topics.dead_letter_topic(TOPIC), batch))


async def test_a_message_with_a_skip_order_becomes_a_dead_letter(
    settings: dict[str, str], skips: RedisSkips, unique_name: Callable[[str], str]
) -> None:
    batch = unique_name("batch")
    async with Platform(settings["kafka_bootstrap_servers"]) as platform:
        event = spellchecked(batch, "essay-1")
        [_, where, after] = await platform.send(
            registered(batch, ["essay-1", "essay-2"]), event, spellchecked(batch, "essay-2")
        )
        ordered, passed = order(where.offset, where.partition), order(after.offset, after.partition, "too late")
        await skips.order(ordered)
        async with (
            running_service(**settings) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            await wait_until(lambda: platform.caught_up(service.group))
            [letter] = await wait_until(partial(letters_of, platform, batch))
            assert letter["dlq_reason"] == "skipped_by_operator"
            assert letter["failed_event_envelope"] == event_document(event)
            assert await wait_until(partial(outcome_of, skips, ordered)) is SkipOutcome.SKIPPED
            assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"], (
                "one essay's completion is missing"
            )
            await skips.order(passed)
            assert await wait_until(partial(outcome_of, skips, passed)) is SkipOutcome.ALREADY_PROCESSED
        assert await skips.waiting() == []


def event_document(event: Event) -> object:
    import json

    return json.loads(event.value)


async def test_an_undecodable_order_does_not_hide_others(
    skips: RedisSkips, redis_key_prefix: str, gateway: RedisGateway, caplog: pytest.LogCaptureFixture
) -> None:
    ordered = order(7)
    await gateway.call(("HSET", f"{redis_key_prefix}{{intake}}:skips", f"{TOPIC}/0/8", "junk"))
    await skips.order(ordered)
    for _ in range(2):
        assert await skips.waiting() == [WaitingSkip(ordered)]
    assert [vars(record)["place"] for record in caplog.records if record.msg == "skip_order_undecodable"] == [
        f"{TOPIC}/0/8"
    ]
    assert await skips.withdraw(Position(TOPIC, 0, 8), at="now", by="somebody") is None
    assert await skips.withdraw(ordered.position, at="now", by="somebody") == ordered
    assert await skips.waiting() == []
    assert await outcome_of(skips, ordered) is SkipOutcome.WITHDRAWN
    await skips.order(ordered)
    await skips.save_outcome(ordered, SkipOutcome.SKIPPED)
    assert await skips.withdraw(ordered.position, at="now", by="somebody") is None
    assert await skips.waiting() == [WaitingSkip(ordered, SkipOutcome.SKIPPED)]


async def test_an_operator_withdraws_an_open_order(skips: RedisSkips, redis_url: str, redis_key_prefix: str) -> None:
    variables = {"BCS_REDIS_URL": redis_url, "BCS_REDIS_KEY_PREFIX": redis_key_prefix}
    await skips.order(order(7))
    withdrawn = await bcs("intake", "withdraw", TOPIC, "0", "7", **variables)
    assert (withdrawn.exit_code, withdrawn.output) == (0, f"Withdrawn: the order to skip {TOPIC}/0/7 (it is wrong).\n")
    again = await bcs("intake", "withdraw", TOPIC, "0", "7", **variables)
    assert (again.exit_code, again.error) == (1, f"No order waits for {TOPIC}/0/7.\n")
    assert await outcome_of(skips, order(7)) is SkipOutcome.WITHDRAWN


async def test_an_order_closes_only_once_the_offset_after_it_is_committed(
    settings: dict[str, str], skips: RedisSkips, unique_name: Callable[[str], str]
) -> None:
    batch = unique_name("batch")
    may_commit = anyio.Event()

    async def reach(point: FailPoint, _: str) -> None:
        if point is FailPoint.BEFORE_OFFSET_COMMIT and not may_commit.is_set():
            raise RuntimeError("the intake dies before its offsets are committed")

    async with Platform(settings["kafka_bootstrap_servers"]) as platform:
        [_, where] = await platform.send(registered(batch, ["essay-1"]), spellchecked(batch, "essay-1"))
        ordered = order(where.offset, where.partition)
        await skips.order(ordered)

        async def is_carried_out() -> bool:
            return await skips.waiting() == [WaitingSkip(ordered, SkipOutcome.SKIPPED)]

        async with running_service(reach, **settings) as service:
            await wait_until(is_carried_out)
            # What is read again is passed over again, and gets the same dead letter.
            await wait_until(lambda: service.restarts()["intake"] > 0)
            assert await outcome_of(skips, ordered) is None
            service.call(may_commit.set)
            assert await wait_until(partial(outcome_of, skips, ordered)) is SkipOutcome.SKIPPED
            await wait_until(lambda: platform.caught_up(service.group))
            assert len(await letters_of(platform, batch)) == 1
            async with Orchestrator(service.base) as orchestrator:
                assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]


async def test_a_skipped_message_in_flight_gets_a_dead_letter_with_its_bytes(
    settings: dict[str, str], skips: RedisSkips, unique_name: Callable[[str], str]
) -> None:
    batch, held, let_go = unique_name("batch"), threading.Event(), anyio.Event()

    async def reach(point: FailPoint, name: str) -> None:
        if point is FailPoint.BEFORE_EXEC and name == batch:
            held.set()
            await let_go.wait()

    async with (
        Platform(settings["kafka_bootstrap_servers"]) as platform,
        running_service(reach, **settings) as service,
    ):
        event = spellchecked(batch, "essay-1")
        [where] = await platform.send(event)
        # Else the order may be known before the message is read, and nothing would have to be held.
        await wait_until(held.is_set)
        ordered = order(where.offset, where.partition)
        await skips.order(ordered)
        [letter] = await wait_until(partial(letters_of, platform, batch))
        assert letter["failed_event_envelope"] == event_document(event)
        assert await wait_until(partial(outcome_of, skips, ordered)) is SkipOutcome.SKIPPED
        service.call(let_go.set)


async def test_undecodable_orders_do_not_stop_the_intake(
    settings: dict[str, str], skips: RedisSkips, gateway: RedisGateway, unique_name: Callable[[str], str]
) -> None:
    batch = unique_name("batch")
    await gateway.call(("HSET", f"{settings['redis_key_prefix']}{{intake}}:skips", "junk", "junk"))
    assert await skips.waiting() == []
    async with (
        Platform(settings["kafka_bootstrap_servers"]) as platform,
        running_service(**settings) as service,
    ):
        await platform.send(registered(batch, ["essay-1"]))
        await wait_until(lambda: platform.caught_up(service.group))
        assert all(child.restarts == 0 for child in service.snapshot().children)
