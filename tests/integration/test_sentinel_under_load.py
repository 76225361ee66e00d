"""Two replicas of BCS under load while Sentinels fail over: right answers or prompt 503s, and no event is lost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from tests.support.failover_load import two_replicas_under_load
from tests.support.redis_sentinel import SentinelSet, running_sentinels

# At every commit: test_redis_sentinel.py, with the connections alone.
pytestmark = [pytest.mark.anyio, pytest.mark.release]

PASSWORD = "of-all-servers"  # noqa: S105
RECOVERY_SECONDS = 5.0
SETTLED_SECONDS = 2.0


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelSet]:
    with running_sentinels(tmp_path, password=PASSWORD, sentinel_password=PASSWORD) as running:
        yield running


async def asked_for(sentinels: SentinelSet) -> None:
    await sentinels.fail_over()


async def killed(sentinels: SentinelSet) -> None:
    master = await sentinels.master()
    master.kill()
    await sentinels.wait_until_not_master(master)


async def frozen(sentinels: SentinelSet) -> None:
    master = await sentinels.master()
    master.freeze()
    await sentinels.wait_until_not_master(master)


async def killed_with_a_sentinel(sentinels: SentinelSet) -> None:
    sentinels.sentinels[0].kill()
    await killed(sentinels)


async def comes_back(sentinels: SentinelSet) -> None:
    """Whatever was lost is there again: the old master as a replica."""
    for server in (*sentinels.servers, *sentinels.sentinels):
        if not server.running:
            await sentinels.restart(server)
        server.thaw()
    await sentinels.wait_until_whole()


@pytest.mark.parametrize(
    ("fails_over", "archive"),
    [(asked_for, True), (killed, True), (frozen, True), (killed_with_a_sentinel, True), (killed, False)],
)
async def test_a_failover_is_prompt_refusals_and_nothing_else(
    sentinels: SentinelSet,
    module_kafka: str,
    database_url: str,
    unique_name: Callable[[str], str],
    fails_over: Callable[[SentinelSet], Awaitable[None]],
    archive: bool,
) -> None:
    settings = {"redis_url": sentinels.url, "redis_sentinel_password": PASSWORD}
    if archive:
        settings["database_url"] = database_url
    async with two_replicas_under_load(
        unique_name("failover"), kafka_bootstrap_servers=module_kafka, **settings
    ) as load:
        await fails_over(sentinels)
        over_at = time.monotonic()
        # Calls go on after the failover, and after the return: none may fail later than this.
        await anyio.sleep(RECOVERY_SECONDS)
        await comes_back(sentinels)
        # For calls after the return.
        await anyio.sleep(SETTLED_SECONDS)
        await load.stop()
        load.assert_answers()
        assert load.refused_after(over_at + RECOVERY_SECONDS) == []
        if archive:
            await load.assert_nothing_is_lost()
