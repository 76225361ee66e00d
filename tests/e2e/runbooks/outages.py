"""Kafka, Redis or PostgreSQL is away."""

from __future__ import annotations

from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import Site
from tests.support.events import registered, spellchecked

CURL = r"curl -s -w '%{http_code}\n'"
"""Shows the status below the body."""

PROBLEMS = "bcs doctor | grep -v ^ok"
ESSAYS = ["anna", "ben"]


def metrics(names: str) -> str:
    """The command that shows some metrics of the first replica.

    :param names: a regular expression, without the prefix.
    """
    pattern = f"-E '^bcs_({names})'" if not names.isidentifier() else f"^bcs_{names}"
    return f"curl -s http://127.0.0.1:4002/metrics | grep {pattern}"


async def a_spellchecked_batch(site: Site, page: Transcript, batch: str) -> None:
    """Have the spellcheck of a batch completed, as BCS answers."""
    await site.platform.send(registered(batch, ESSAYS))
    await site.platform.send(*(spellchecked(batch, essay) for essay in ESSAYS))
    await page.try_out(f"bcs batches show {batch}", "spellcheck +complete")


async def _kafka(site: Site, page: Transcript) -> None:
    await site.start()
    await a_spellchecked_batch(site, page, "b1")
    await site.kafka_goes_away()
    await page.run("see", metrics("kafka_up"), r"kafka_up 0")
    await page.run("see", PROBLEMS, r"failed +service .*degraded", r"failed +kafka ", exit_code=1)
    await page.run("meanwhile", "bcs resolve b1 ai_feedback", "spellcheck +pruned", exit_code=0)
    await page.run("meanwhile", metrics("outbox_backlog|outbox_oldest"), r"outbox_backlog 1")
    await site.start("bcs-2")
    await page.run("start", "curl -s http://127.0.0.1:4003/readyz", "true|ready", exit_code=0)
    site.kafka_comes_back()
    await page.run("over", metrics("kafka_up|outbox_backlog"), r"kafka_up 1", r"outbox_backlog 0")
    await page.run("over", "bcs events tail --skipped --no-follow --last 1", "phase skipped: spellcheck of batch b1")
    await page.run("over", PROBLEMS, " 0 failed", exit_code=0)


async def _redis(site: Site, page: Transcript) -> None:
    await site.start()
    alone = {"BCS_DATABASE_URL": None, "BCS_REDIS_KEY_PREFIX": "other:", "BCS_KAFKA_CONSUMER_GROUP_ID": "other"}
    await site.start("bcs-2", **alone)
    await a_spellchecked_batch(site, page, "b1")
    site.redis.stop()
    await page.run("see", metrics("redis_up"), r"redis_up.* 0")
    await page.run("see", PROBLEMS, r"failed +service .*degraded", r"failed +redis ", exit_code=1)
    await page.run("with", "curl -s http://127.0.0.1:4002/readyz", "true|ready", exit_code=0)
    await page.run("with", "bcs resolve b1 ai_feedback --json | grep source", "postgresql")
    await page.run("with", _report("4002"), "503")
    await page.run("without", f"{CURL} http://127.0.0.1:4003/readyz", "503")
    await page.run("without", define("4003"), "503")
    site.redis.start()
    await page.run("over", metrics("redis_up"), r"redis_up.* 1")
    await page.run("over", "bcs resolve b1 ai_feedback --json | grep source", '"redis"')
    await page.run("over", "curl -s http://127.0.0.1:4003/readyz", "true|ready", exit_code=0)
    await page.run("over", PROBLEMS, " 0 failed", exit_code=0)


def define(port: str, curl: str = CURL) -> str:
    """The command that asks what is still to run, as the orchestrator does."""
    body = '{"batch_id": "b1", "requested_pipeline": "ai_feedback", "correlation_id": "c1"}'
    return _post(curl, f"{port}/internal/v1/pipelines/define", body)


def _report(port: str) -> str:
    body = '{"batch_id": "b1", "phase_name": "nlp", "success": true}'
    return _post(CURL, f"{port}/internal/v1/phases/complete", body)


def _post(curl: str, path: str, body: str) -> str:
    return f"{curl} http://127.0.0.1:{path} -H 'Content-Type: application/json' -d '{body}'"


async def _postgresql(site: Site, page: Transcript) -> None:
    await site.start()
    await a_spellchecked_batch(site, page, "b1")
    site.postgres.stop()
    await page.run("see", metrics("archive_up"), r"archive_up.* 0")
    await page.run("see", PROBLEMS, r"failed +service .*degraded", r"failed +postgresql ", exit_code=1)
    await a_spellchecked_batch(site, page, "b2")
    await page.run("meanwhile", "bcs resolve b2 ai_feedback --json | grep source", '"redis"')
    await page.run("meanwhile", metrics("archive_backlog"), r"archive_backlog.* [1-9]")
    await page.run("meanwhile", f"{CURL} http://127.0.0.1:4002/internal/v1/batches/b2/history", "503")
    site.postgres.start()
    await page.run("over", metrics("archive_up|archive_backlog"), r"archive_up.* 1", r"archive_backlog.* 0")
    await page.run(
        "over", "bcs batches history b2 --type SpellcheckPhaseCompletedV1 --limit 1", "SpellcheckPhaseCompletedV1"
    )
    await page.run("over", PROBLEMS, " 0 failed", exit_code=0)


KAFKA_AWAY = Runbook("kafka-away", _kafka, ("see", "meanwhile", "start", "over"))
REDIS_AWAY = Runbook("redis-away", _redis, ("see", "with", "without", "over"))
POSTGRESQL_AWAY = Runbook("postgresql-away", _postgresql, ("see", "meanwhile", "over"))
