"""The rights that docs/operations.md has as lines to copy are all that the service needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.storage.postgres import schema
from bcs.wire import topics
from tests.support.documented import postgresql_grants, redis_acl
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]


@pytest.fixture
async def documented_redis_url(own_valkey: EmbeddedServer) -> AsyncIterator[str]:
    """A Redis whose only user has the rights of the document."""
    async with Redis.from_url(f"redis://{own_valkey.address}", single_connection_client=True) as control:
        await cast("Any", control).execute_command(*redis_acl("secret"))
        await control.acl_setuser("default", enabled=False)
        yield f"redis://bcs:secret@{own_valkey.address}"
        await control.acl_setuser("default", enabled=True, nopass=True, keys=["*"], categories=["+@all"])


@pytest.fixture(params=["an owner", "a user"])
async def documented_database_url(
    request: pytest.FixtureRequest, database_url: str, unique_name: Callable[[str], str]
) -> AsyncIterator[str]:
    """A database for a user who has the rights of the document."""
    user = unique_name("bcs").replace("-", "_")
    if request.param == "a user":
        await schema.upgrade(database_url)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f"CREATE ROLE {user} LOGIN; {postgresql_grants(request.param, user)}")
        parts = urlsplit(database_url)
        yield parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        await connection.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")
        await connection.close()


async def test_the_documented_rights_are_enough(
    documented_redis_url: str, documented_database_url: str, platform: Platform, module_kafka: str, batch: str
) -> None:
    async with (
        running_service(
            redis_url=documented_redis_url,
            database_url=documented_database_url,
            redis_key_prefix="bcs:",
            kafka_bootstrap_servers=module_kafka,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):

        async def healthy() -> bool:
            found = (await orchestrator.get("/healthz")).json["dependencies"]
            return {found[name]["status"] for name in ("redis", "postgresql")} == {"healthy"}

        # An owner's service makes the tables first, which a busy machine takes long for: 503 until then.
        await wait_until(healthy)
        await platform.send(registered(batch, ["a"]), spellchecked(batch, "a"), spellchecked(batch, "a", "no-status"))
        await wait_until(lambda: platform.caught_up(service.group))
        assert (await orchestrator.define(batch, "ai_feedback")).json["pruned_phases"] == ["spellcheck"]
        await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        await wait_until(lambda: platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch))

        async def archived() -> bool:
            history = await orchestrator.get(f"/internal/v1/batches/{batch}/history")
            assert history.status == 200, history.body
            return {"facts", "resolution"} <= {entry["kind"] for entry in history.json["entries"]}

        await wait_until(archived)
        await wait_until(healthy)
