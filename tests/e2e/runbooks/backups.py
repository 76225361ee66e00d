"""Redis and PostgreSQL go back to yesterday, or Redis is empty."""

from __future__ import annotations

import shutil
from functools import partial

import anyio.to_thread
from redis.asyncio import Redis

from tests.e2e.runbooks.outages import PROBLEMS
from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import GROUP, Site
from tests.support.events import registered, spellchecked
from tests.support.waiting import wait_until

_ALONE = {"BCS_DATABASE_URL": None, "BCS_REDIS_KEY_PREFIX": "other:", "BCS_KAFKA_CONSUMER_GROUP_ID": "other"}
_ESSAYS = ["anna", "ben"]


async def _caught_up(site: Site, *groups: str) -> None:
    for group in groups:
        await wait_until(partial(site.platform.caught_up, group))


def _resolve(port: int) -> str:
    return f"bcs resolve b1 ai_feedback --url http://127.0.0.1:{port}"


async def _restore(site: Site, page: Transcript) -> None:
    backup = site.directory / "yesterday"
    await site.start("bcs-1")
    await site.start("bcs-2", **_ALONE)
    await site.platform.send(registered("b1", _ESSAYS), spellchecked("b1", "anna"))
    await _caught_up(site, GROUP, "other")
    await page.run("backup", 'pg_dump --format=custom --file=yesterday.dump "$BCS_DATABASE_URL"', exit_code=0)
    await anyio.to_thread.run_sync(shutil.copytree, site.redis.directory, backup)

    # What happens until today.
    await site.platform.send(spellchecked("b1", "ben"))
    await site.platform.send(registered("b2", _ESSAYS), *(spellchecked("b2", essay) for essay in _ESSAYS))
    await _caught_up(site, GROUP, "other")
    await page.try_out(_resolve(4003), "spellcheck +pruned", exit_code=0)

    site.redis.stop()
    await anyio.to_thread.run_sync(shutil.rmtree, site.redis.directory)
    await anyio.to_thread.run_sync(shutil.copytree, backup, site.redis.directory)
    site.redis.start()
    page.note("redis-archive", "# Redis was stopped, got the files of yesterday, and was started")
    await page.run("redis-archive", _resolve(4002), "spellcheck +pruned", exit_code=0)
    await page.run("redis-alone", _resolve(4003), "1 of 2 essays ha", exit_code=0)
    assert await site.stop("bcs-2") == 0
    page.note("redis-alone", "# all replicas are stopped, and started with BCS_KAFKA_CONSUMER_GROUP_ID=bcs-2026-11-29")
    await site.start("bcs-2", **{**_ALONE, "BCS_KAFKA_CONSUMER_GROUP_ID": "bcs-2026-11-29"})
    await page.run("redis-alone", _resolve(4003), "spellcheck +pruned", exit_code=0)

    async with Redis.from_url(f"redis://{site.redis.address}") as redis:
        await redis.flushall()
    page.note("redis-empty", "redis> FLUSHALL")
    await page.run("redis-empty", _resolve(4002), "spellcheck +pruned", exit_code=0)

    restore = 'pg_restore --clean --if-exists --single-transaction --dbname="$BCS_DATABASE_URL" yesterday.dump'
    await page.run("postgresql", restore, exit_code=0)
    await page.run("postgresql", "bcs batches history b2", "is unknown", exit_code=1)
    await page.run("rebuild", "bcs db rebuild", "facts of 2 batches are in the archive", exit_code=0)
    await page.run(
        "over",
        "bcs batches history b2 --type SpellcheckPhaseCompletedV1 --limit 1",
        "spellcheck completed",
        exit_code=0,
    )
    await page.run("over", PROBLEMS, " 0 failed", exit_code=0)
    async with Redis.from_url(f"redis://{site.redis.address}") as redis:
        await redis.flushall()
    await page.try_out("bcs resolve b2 ai_feedback", "spellcheck +pruned", exit_code=0)


RESTORE_FROM_BACKUP = Runbook(
    "restore-from-backup",
    _restore,
    ("backup", "redis-archive", "redis-alone", "redis-empty", "postgresql", "rebuild", "over"),
)
