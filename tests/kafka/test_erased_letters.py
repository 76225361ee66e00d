"""The dead letters of an erased batch, on a broker that deletes and compacts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from bcs.config.loading import load_settings
from bcs.config.settings import Settings
from bcs.ops.dlq.erasing import erase_dead_letters, read_dead_letters
from bcs.ops.dlq.reading import dead_letter_reader
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetterPosition
from bcs.wire.published import SERVICE
from tests.kafka.test_replay import empty_all_topics
from tests.support.kafka import configured

pytestmark = [pytest.mark.anyio, pytest.mark.release]

LETTERS = topics.dead_letter_topic(topics.CJ_COMPLETED)


@pytest.fixture
async def broker(kafka_to_empty: str) -> AsyncIterator[Settings]:
    """The settings of a broker without dead letters."""
    await empty_all_topics(kafka_to_empty)
    yield load_settings(kafka_bootstrap_servers=kafka_to_empty)
    await empty_all_topics(kafka_to_empty)


def letter(batch: str, service: str) -> bytes:
    document = {
        "failed_event_envelope": {"about": "Elsa"},
        "dlq_reason": "invalid_event",
        "timestamp": "2026-05-03T08:00:00Z",
        "service": service,
        "additional_metadata": {"source_topic": topics.CJ_COMPLETED, "batch_id": batch},
    }
    return json.dumps(document).encode()


async def write(broker: Settings, *letters: tuple[str, str]) -> list[DeadLetterPosition]:
    """Write dead letters of batches and services to one partition."""
    async with AIOKafkaProducer(bootstrap_servers=broker.kafka_bootstrap_servers) as producer:
        sent = [
            await producer.send_and_wait(LETTERS, letter(batch, service), batch.encode(), partition=0)
            for batch, service in letters
        ]
    return [DeadLetterPosition(LETTERS, 0, each.offset) for each in sent]


async def remaining(broker: Settings) -> list[DeadLetterPosition]:
    async with dead_letter_reader(broker) as reader:
        return sorted((await reader.index([LETTERS])).dead_letters)


async def test_what_is_before_the_letters_of_other_batches_is_deleted(broker: Settings, batch: str) -> None:
    first, second, others, behind, by_others = await write(
        broker, (batch, SERVICE), (batch, SERVICE), ("other", SERVICE), (batch, SERVICE), (batch, "another_service")
    )
    erased = await erase_dead_letters(broker, batch)
    assert erased.deleted == (first, second)
    assert {each.position: each.goes for each in erased.left} == {behind: False, by_others: False}
    assert any(str(others) in each.why for each in erased.left)
    assert await remaining(broker) == [others, behind, by_others]
    again = await erase_dead_letters(broker, batch)
    assert (again.deleted, len(again.left)) == ((), 2)


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
async def test_in_a_compacted_topic_a_tombstone_is_behind_them(broker: Settings, batch: str, policy: str) -> None:
    async with configured(broker.kafka_bootstrap_servers, {LETTERS: {"cleanup.policy": policy}}):
        first, others, behind = await write(broker, (batch, SERVICE), ("other", SERVICE), (batch, SERVICE))
        erased = await erase_dead_letters(broker, batch)
        deleted = (first,) if "delete" in policy else ()
        assert erased.deleted == deleted
        assert [(each.position, each.goes) for each in erased.left] == [
            (where, True) for where in (first, behind) if where not in deleted
        ]
        assert await remaining(broker) == [others]
        assert (await read_dead_letters(broker, batch)).ours == ()
