"""The rights that docs/operations.md has as lines to copy are all that the service needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.storage.postgres import schema
from bcs.wire import topics
from tests.support.databases import unprobed_archive
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

OPERATIONS = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text()


def lines_of(name: str) -> list[str]:
    """The lines of a block in the document."""
    [block] = re.findall(rf"<!-- {name}: begin -->\n```\w*\n(.*?)```", OPERATIONS, re.DOTALL)
    return str(block).splitlines()


@pytest.fixture
def kafka_bootstrap_servers(module_kafka: str) -> str:
    return module_kafka


async def test_the_documented_redis_acl_is_enough(
    own_valkey: EmbeddedServer, platform: Platform, module_kafka: str, batch: str
) -> None:
    [line] = lines_of("redis acl")
    async with Redis.from_url(f"redis://{own_valkey.address}") as control:
        await cast("Any", control).execute_command(*line.replace("PASSWORD", "secret").split())
        await control.acl_setuser("default", enabled=False)
    url = f"redis://bcs:secret@{own_valkey.address}"
    settings = {"redis_url": url, "redis_key_prefix": "bcs:", "kafka_bootstrap_servers": module_kafka}
    async with running_service(**settings) as service, Orchestrator(service.base) as orchestrator:
        await platform.send(registered(batch, ["a"]), spellchecked(batch, "a"), spellchecked(batch, "a", "no-status"))
        await wait_until(lambda: platform.caught_up(service.group))
        assert (await orchestrator.define(batch, "ai_feedback")).json["pruned_phases"] == ["spellcheck"]
        await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        await wait_until(lambda: platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch))

        async def healthy() -> bool:
            return bool((await orchestrator.get("/healthz")).json["dependencies"]["redis"]["status"] == "healthy")

        await wait_until(healthy)


@pytest.mark.parametrize("block", ["postgresql grants of an owner", "postgresql grants of a user"])
async def test_the_documented_postgresql_grants_are_enough(
    database_url: str, unique_name: Callable[[str], str], block: str
) -> None:
    user = unique_name("bcs").replace("-", "_")
    grants = [line.replace("TO bcs;", f"TO {user};") for line in lines_of(block)]
    if "of a user" in block:
        await schema.upgrade(database_url)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("\n".join([f"CREATE ROLE {user} LOGIN;", *grants]))
        parts = urlsplit(database_url)
        archive = unprobed_archive(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl())
        await archive.probe(5)
        assert archive.reachable
        await archive.aclose()
    finally:
        await connection.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")
        await connection.close()
