"""Connections to PostgreSQL under strain: many callers, a frozen server, a stop in the middle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.embedded_postgres import PostgresServer
from bcs.record.gateway import RecordGateway

pytestmark = pytest.mark.anyio


async def one(connection: Any) -> Any:
    return await connection.fetchval("SELECT 1")


@pytest.fixture
async def gateway(private_postgres: PostgresServer) -> AsyncIterator[RecordGateway]:
    gateway = RecordGateway(private_postgres.url, max_connections=2, deadline_seconds=1.0)
    await gateway.probe(20)
    yield gateway
    private_postgres.thaw()
    await gateway.aclose()


async def test_work_that_may_take_long_is_no_obstacle_to_a_stop(
    gateway: RecordGateway, private_postgres: PostgresServer
) -> None:
    assert await gateway.run(one) == 1
    private_postgres.freeze()
    began = time.monotonic()
    with anyio.move_on_after(0.1):
        await gateway.run(one, deadline_seconds=10)
    assert time.monotonic() - began < 5
    private_postgres.thaw()
    await gateway.probe(20)
    assert await gateway.run(one) == 1
