"""Replicas come and go: more of them, a region that is drained, another build."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import anyio

from tests.e2e.rolling_upgrade import roll
from tests.e2e.runbooks.outages import PROBLEMS, a_spellchecked_batch, define
from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import Site
from tests.support.former_release import unpacked

_GROUP = "bcs doctor | grep -E 'consumer group|lag'"
_BATCHES = 40


def _partitions(ports: Sequence[int]) -> str:
    """The command that counts the partitions of each replica."""
    listed = " ".join(map(str, ports))
    pattern = "^bcs_kafka_partition_stalled"
    return f"for port in {listed}; do curl -s http://127.0.0.1:$port/metrics | grep -c {pattern}; done"


async def _scale(site: Site, page: Transcript) -> None:
    await site.start("bcs-1")
    await a_spellchecked_batch(site, page, "b1")
    await page.run("one", _partitions([4002]), "^16$")
    await site.start("bcs-2")
    await page.run("two", _GROUP, "2 members")
    await page.run("two", _partitions([4002, 4003]), "^8\n8$")
    await page.run("answers", "bcs resolve b1 ai_feedback --url http://127.0.0.1:4003", "spellcheck +pruned")
    page.note("down", "# bcs-2 gets SIGTERM, as `kubectl scale --replicas=1` sends it, and exits with 0")
    assert await site.stop("bcs-2") == 0
    await page.run("down", _partitions([4002]), "^16$")
    await a_spellchecked_batch(site, page, "b2")
    await page.run("down", PROBLEMS, " 0 failed", exit_code=0)


async def _drain(site: Site, page: Transcript) -> None:
    # Long enough for the operator to look.
    await site.start("bcs-1", BCS_SHUTDOWN_DRAIN_SECONDS=12)
    await site.start("bcs-2")
    await a_spellchecked_batch(site, page, "b1")
    await page.run("before", _partitions([4002, 4003]), "^8\n8$")
    page.note("drain", "# bcs-1, the only replica in the region, gets SIGTERM")
    drained = site.replicas.pop("bcs-1")
    drained.signal(signal.SIGTERM)
    await page.run("drain", "curl -s -w '%{http_code}\\n' http://127.0.0.1:4002/readyz", "503")
    # No command of bcs: on a busy machine, to start one may take longer than the drain.
    await page.run("drain", define("4002", r"curl -s -o /dev/null -w '%{http_code}\n'"), "200")
    assert await drained.ended() == 0
    log = site.log_of("bcs-1")
    await page.try_out(f"cp {log} bcs-1.log")
    await page.run("drain", "grep -o -E 'stopping|stopped .*exit_code=[0-9]+' bcs-1.log", "stopped")
    await page.run("over", _partitions([4003]), "^16$")
    await a_spellchecked_batch_at(site, page, "b2", 4003)
    site.variables_of = "bcs-2"
    await page.run("over", _GROUP, "1 member")
    # The region is lost, not drained.
    site.variables_of = "bcs-1"
    await site.start("bcs-1")
    await page.try_out(_partitions([4002, 4003]), "^8\n8$")
    page.note("lost", "# bcs-2 is killed with kill -9")
    lost = site.replicas.pop("bcs-2")
    lost.signal(signal.SIGKILL)
    with anyio.fail_after(60):
        await lost.ended()
    await page.run("lost", _partitions([4002]), "^16$")
    await a_spellchecked_batch(site, page, "b3")
    await page.run("lost", PROBLEMS, " 0 failed", exit_code=0)


async def a_spellchecked_batch_at(site: Site, page: Transcript, batch: str, port: int) -> None:
    """The same with a replica that answers."""
    await a_spellchecked_batch(site, page, batch)
    await page.try_out(f"bcs resolve {batch} ai_feedback --url http://127.0.0.1:{port}", "spellcheck +pruned")


async def _upgrade(site: Site, page: Transcript) -> None:
    former = await anyio.to_thread.run_sync(unpacked, site.directory / ".former")
    rollout = await roll(site, former, _BATCHES)
    page.note("load", f"# {rollout.figures()}")
    site.variables_of = "bcs-1"
    await site.stop("bcs-1")
    await site.stop("bcs-2")
    await page.run("schema", "bcs db upgrade", "current", exit_code=0)
    for name in ("bcs-1", "bcs-2"):
        await site.start(name)
    versions = 'for port in 4002 4003; do curl -s http://127.0.0.1:$port/healthz | grep -o \'"version":"[^"]*"\'; done'
    await page.run("over", versions, exit_code=0)
    await page.run("over", PROBLEMS, " 0 failed", exit_code=0)


SCALE_UP_AND_DOWN = Runbook("scale-up-and-down", _scale, ("one", "two", "answers", "down"))
DRAIN_A_REGION = Runbook("drain-a-region", _drain, ("before", "drain", "over", "lost"))
UPGRADE_AND_ROLL_BACK = Runbook("upgrade-and-roll-back", _upgrade, ("load", "schema", "over"))
