"""Passwords and tokens change while the service runs."""

from __future__ import annotations

from typing import Any

import asyncpg
from redis.asyncio import Redis

from tests.e2e.runbooks.outages import PROBLEMS, a_spellchecked_batch
from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import DATABASE, Site
from tests.support.documented import redis_acl

_OLD, _NEW = "old-password", "new-password"
_OLD_TOKEN, _NEW_TOKEN = "old-token-0123456789", "new-token-0123456789"


async def _rotate(site: Site, page: Transcript) -> None:
    secrets = site.directory / "secrets"
    secrets.mkdir()
    (secrets / "BCS_REDIS_PASSWORD").write_text(_OLD)
    (secrets / "BCS_DATABASE_URL").write_text(site.database.replace("bcs@", "bcs_1@"))
    (secrets / "BCS_TOKEN").write_text(_OLD_TOKEN)
    callers = site.directory / "callers.yaml"
    callers.write_text(_callers(_OLD_TOKEN))
    site.settings |= {
        "secrets_dir": secrets,
        "redis_username": "bcs",
        "database_url": None,
        "http_tokens_file": callers,
    }
    database = await asyncpg.connect(site.database)
    redis: Any
    async with Redis.from_url(f"redis://{site.redis.address}") as redis:
        await redis.execute_command(*redis_acl(_OLD))
        for user in ("bcs_1", "bcs_2"):
            await database.execute(f"CREATE USER {user} IN ROLE bcs")
        # The owner of the tables is neither of the two users.
        await page.try_out(f"BCS_DATABASE_URL={site.database} bcs db upgrade", exit_code=0)
        await site.start()
        await a_spellchecked_batch(site, page, "b1")

        page.note("redis", f"redis> ACL SETUSER bcs >{_NEW}")
        await redis.execute_command("ACL", "SETUSER", "bcs", f">{_NEW}")
        await page.run("redis", f"printf %s {_NEW} > secrets/BCS_REDIS_PASSWORD", exit_code=0)
        page.note("redis", f"redis> ACL SETUSER bcs <{_OLD}")
        await redis.execute_command("ACL", "SETUSER", "bcs", f"<{_OLD}")
        page.note("redis", "redis> CLIENT KILL USER bcs")
        await redis.execute_command("CLIENT", "KILL", "USER", "bcs")
        await page.run("redis", "bcs resolve b1 ai_feedback --json | grep source", '"redis"', exit_code=0)

        url = f"postgresql://bcs_2@127.0.0.1:5432/{DATABASE}"
        await page.run("postgresql", f"printf %s '{url}' > secrets/BCS_DATABASE_URL", exit_code=0)
        end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'bcs_1'"
        page.note("postgresql", f"bcs=> {end};")
        assert await database.fetchval(end)
        await database.execute("ALTER USER bcs_1 NOLOGIN")
        page.note("postgresql", "bcs=> ALTER USER bcs_1 NOLOGIN;")
        await a_spellchecked_batch(site, page, "b2")
        await page.run(
            "postgresql",
            "bcs batches history b2 --type SpellcheckPhaseCompletedV1 --limit 1",
            "spellcheck completed",
            exit_code=0,
        )

        callers.write_text(_callers(_OLD_TOKEN, _NEW_TOKEN))
        page.note("token", f"# callers.yaml: tokens: [{_OLD_TOKEN}, {_NEW_TOKEN}]")
        await page.run("token", f"printf %s {_NEW_TOKEN} > secrets/BCS_TOKEN", exit_code=0)
        await page.run("token", "bcs resolve b1 ai_feedback | head -4", "spellcheck +pruned", exit_code=0)
        callers.write_text(_callers(_NEW_TOKEN))
        page.note("token", f"# callers.yaml: tokens: [{_NEW_TOKEN}]")
        await page.run("token", f"BCS_TOKEN={_OLD_TOKEN} bcs resolve b1 ai_feedback", "401", exit_code=1)

        await page.run("wrong", "printf %s mistyped > secrets/BCS_REDIS_PASSWORD", exit_code=0)
        await redis.execute_command("CLIENT", "KILL", "USER", "bcs")
        page.note("wrong", "redis> CLIENT KILL USER bcs")
        await page.run("wrong", PROBLEMS, "failed +redis ", exit_code=1)
        await page.run("wrong", f"printf %s {_NEW} > secrets/BCS_REDIS_PASSWORD", exit_code=0)
        await page.run("over", PROBLEMS, " 0 failed", exit_code=0)
    await database.close()


def _callers(*tokens: str) -> str:
    return f"callers: [{{name: operator, scopes: [resolve, report, read, operate], tokens: [{', '.join(tokens)}]}}]\n"


ROTATE_SECRETS = Runbook("rotate-secrets", _rotate, ("redis", "postgresql", "token", "wrong", "over"))
