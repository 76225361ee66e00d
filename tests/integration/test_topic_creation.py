"""A broker that creates topics creates none for BCS."""

from __future__ import annotations

from contextlib import suppress

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.kafka.isolation import IsolatingConsumer

pytestmark = pytest.mark.anyio


async def test_to_read_or_write_a_missing_topic_does_not_create_that_topic(private_kafka: EmbeddedServer) -> None:
    servers = private_kafka.address
    consumer = IsolatingConsumer(partition_retry_maximum_seconds=1, bootstrap_servers=servers)
    producer = AIOKafkaProducer(bootstrap_servers=servers, request_timeout_ms=200)
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await consumer.start()
    await producer.start()
    await admin.start()
    try:
        consumer.subscribe(["read"])
        await consumer._client.force_metadata_update()
        with suppress(KafkaError):
            await producer.partitions_for("written")
        assert await admin.list_topics() == []
    finally:
        await consumer.stop()
        await producer.stop()
        await admin.close()
