"""A client of Kafka that is cancelled while it connects leaves no connection open."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
import pytest
from aiokafka.client import AIOKafkaClient

import bcs.kafka.connecting  # noqa: F401 (what is tested)
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DELAY_SECONDS, MOMENTS = 0.05, 20


async def test_whenever_connecting_is_cancelled_no_connection_stays_open(kafka_bootstrap_servers: str) -> None:
    target = urlsplit(f"//{kafka_bootstrap_servers}")
    assert target.hostname
    assert target.port
    finished = 0

    async def connect(proxy: FaultProxy, seconds: float) -> None:
        nonlocal finished
        client = AIOKafkaClient(bootstrap_servers=proxy.address)
        with anyio.move_on_after(seconds):
            await client.bootstrap()
            finished += 1
        await client.close()

    async with FaultProxy(target.hostname, target.port) as proxy:
        proxy.delay(DELAY_SECONDS)
        for slower in (1, 2, 4, 8, 16):  # as slow as the machine is
            async with anyio.create_task_group() as group:
                for moment in range(1, MOMENTS):
                    group.start_soon(connect, proxy, slower * DELAY_SECONDS * moment / 4)
            if finished:
                break
        assert 0 < finished < MOMENTS - 1, "some were cancelled, and some were not"
        await wait_until(lambda: proxy.connections_open == 0)
