"""The suites that speak of one Redis, once more on a Redis Cluster of three masters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest

from tests.support.redis_cluster import RedisCluster

pytestmark = [pytest.mark.anyio, pytest.mark.release]

_HERE = Path(__file__).parent
_LIMIT_SECONDS = 900
SUITES = {
    "state": [
        "state_store",
        "merge_contract",
        "essay_limit",
        "corrupt_batch",
        "invalidate",
        "former_layout",
        "erasure",
    ],
    "queues": [
        "outbox",
        "outbox_takeover",
        "announce_once",
        "archive_queue",
        "archive_drain",
        "skips",
        "erased_queues",
        "erasure",
    ],
    "service": [
        "http_api",
        "http_edges",
        "http_history",
        "events_to_answers",
        "dead_letters",
        "publisher",
        "archive_path",
        "command_batches",
        "command_resolve",
    ],
}


@pytest.mark.parametrize("suites", SUITES)
async def test_the_suites_hold_on_a_cluster(redis_cluster: RedisCluster, suites: str) -> None:
    modules = [str(_HERE / f"test_{name}.py") for name in SUITES[suites]]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *modules]
    environment = {**os.environ, "BCS_TEST_REDIS_URL": redis_cluster.url}
    environment.pop("PYTEST_XDIST_WORKER", None)
    with anyio.fail_after(_LIMIT_SECONDS):
        ended = await anyio.run_process(command, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout.decode()
