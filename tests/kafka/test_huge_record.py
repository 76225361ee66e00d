"""A record of 200 MB that Kafka stores in 200 kB: its dead letter is written once, with little memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.wire import topics
from tests.kafka.operator import Operator
from tests.kafka.services import letter_about, replica, shared_names
from tests.support.events import spellchecked
from tests.support.kafka import Platform, create_platform_topics
from tests.support.service import BcsProcess, Orchestrator
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

HUGE_BYTES = 200_000_000
SECONDS = 60


def peak_bytes(process: BcsProcess) -> int:
    """The most memory that a process ever had (Linux)."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


async def test_a_huge_record_costs_little_and_its_letter_puts_it_back(
    private_apache_kafka: EmbeddedServer, private_valkey: EmbeddedServer, tmp_path: Path, batch: str
) -> None:
    kafka, url = private_apache_kafka.address, f"redis://{private_valkey.address}/0"
    await create_platform_topics(kafka)
    names = shared_names(batch)
    operator = Operator(kafka_bootstrap_servers=kafka, redis_url=url)
    with replica(tmp_path, kafka, url, "only", of=names, forked=False) as process:
        await process.answers()
        async with (
            Platform(kafka) as platform,
            Redis.from_url(url) as redis,
            Orchestrator(process.base) as orchestrator,
        ):
            at_rest_bytes = peak_bytes(process)
            producer = AIOKafkaProducer(
                bootstrap_servers=kafka, compression_type="gzip", max_request_size=2 * HUGE_BYTES
            )
            await producer.start()
            huge = await producer.send_and_wait(topics.CJ_COMPLETED, bytes(HUGE_BYTES), batch.encode())
            await producer.stop()
            # Behind the huge record on its partition, and on another topic.
            behind = b"junk behind the huge record"
            [other] = await platform.send_raw((topics.CJ_COMPLETED, batch.encode(), behind))
            await platform.send(spellchecked(batch, "essay"))
            assert (other.partition, other.offset) == (huge.partition, huge.offset + 1)

            async def done() -> bool:
                return await platform.caught_up(batch) and await orchestrator.metric("bcs_outbox_backlog") == 0

            await wait_until(done, SECONDS)
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
            about = (await letter_about(platform, huge))["additional_metadata"]
            assert (about["value_bytes"], about["truncated"]) == (HUGE_BYTES, True)
            letters = await platform.messages(topics.dead_letter_topic(topics.CJ_COMPLETED), batch)
            assert len(letters) == 2
            store = await redis.info("memory")
            assert store["used_memory_peak"] < 50_000_000
            # aiokafka itself decompresses the record into a few copies.
            assert peak_bytes(process) - at_rest_bytes < 3 * HUGE_BYTES
    assert (await operator.asks("dlq", "replay", "--reason", "too_large"))["replayed"] == 1
    async with Platform(kafka) as platform:
        [_, _, again] = await platform.messages(topics.CJ_COMPLETED, batch)
        assert again.value == bytes(HUGE_BYTES)
