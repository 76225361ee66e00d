"""Connections to PostgreSQL under strain: many callers, a frozen server, a stop in the middle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bcs.devtools.servers.postgres import PostgresServer
from bcs.errors import StoreUnavailable
from bcs.storage.postgres.gateway import ArchiveGateway

pytestmark = pytest.mark.anyio


async def one(connection: Any) -> Any:
    return await connection.fetchval("SELECT 1")


@pytest.fixture
async def gateway(running_postgres: PostgresServer) -> AsyncIterator[ArchiveGateway]:
    gateway = ArchiveGateway(running_postgres.url, max_connections=2, deadline_seconds=1.0)
    await gateway.probe(20)
    yield gateway
    running_postgres.thaw()
    await gateway.aclose()


async def test_a_cancelled_long_statement_ends_at_once(
    gateway: ArchiveGateway, running_postgres: PostgresServer
) -> None:
    assert await gateway.run(one) == 1
    running_postgres.freeze()
    began = time.monotonic()
    with anyio.move_on_after(0.1):
        await gateway.run(one, deadline_seconds=10)
    assert time.monotonic() - began < 5
    running_postgres.thaw()
    await gateway.probe(20)
    assert await gateway.run(one) == 1


async def test_a_timeout_in_the_pool_does_not_mark_the_archive_unavailable(gateway: ArchiveGateway) -> None:
    release = anyio.Event()
    refused: list[str] = []

    async def hold(_: Any) -> None:
        await release.wait()

    async def ask() -> None:
        try:
            await gateway.run(one)
        except StoreUnavailable as error:
            refused.append(str(error))
        release.set()

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(lambda: gateway.run(hold, deadline_seconds=20))
        await anyio.wait_all_tasks_blocked()
        await gateway.probe(5)  # has a place of its own
        group.start_soon(ask)
    assert len(refused) == 1
    assert gateway.reachable
    assert await gateway.run(one) == 1


async def test_a_failure_of_an_old_connection_does_not_affect_new_ones(
    gateway: ArchiveGateway, running_postgres: PostgresServer
) -> None:
    begun, found = anyio.Event(), anyio.Event()

    async def fail_late(connection: Any) -> None:
        begun.set()
        await found.wait()
        await one(connection)

    async def ask() -> None:
        with pytest.raises(StoreUnavailable):
            await gateway.run(fail_late, deadline_seconds=20)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await begun.wait()
        await anyio.to_thread.run_sync(running_postgres.kill)
        with pytest.raises(StoreUnavailable):
            await gateway.run(one)
        await anyio.to_thread.run_sync(running_postgres.start)
        await gateway.probe(20)
        found.set()
    assert gateway.reachable
