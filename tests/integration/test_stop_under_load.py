"""A service is stopped under load: each caller is answered, however it keeps its connection and sends its request."""

from urllib.parse import urlsplit

import anyio
import pytest

from bcs.domain.facts import Outcome
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.chaos.connection import Ending
from tests.chaos.load import Load
from tests.support.laws import LAW
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PHASE = "spellcheck"
# Whether a caller keeps its connection, and how long it takes to send the last bytes of a request.
CALLERS = [(True, 0.0), (True, 0.0), (False, 0.0), (False, 0.0), (True, 0.1), (False, 0.1)]
ANSWERS_BEFORE = 30


@pytest.mark.parametrize("drain_seconds", [0.0, 0.3])
async def test_a_stop_under_load_resets_nobody_and_keeps_every_report(
    redis_url: str, redis_key_prefix: str, drain_seconds: float
) -> None:
    settings: dict[str, object] = {
        "redis_url": redis_url,
        "redis_key_prefix": redis_key_prefix,
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "shutdown_drain_seconds": drain_seconds,
    }
    # The service stops first, in order and in time; the callers go on until nobody listens any more.
    async with anyio.create_task_group() as callers, running_service(**settings) as service:
        async with Orchestrator(service.base) as orchestrator:
            assert (await orchestrator.complete("done", PHASE)).status == 200
            assert (await orchestrator.complete("undone", PHASE, success=False)).status == 200
        load = Load(urlsplit(service.base).port or 0, redis_key_prefix, "done", "undone")
        for caller, how in enumerate(CALLERS):
            callers.start_soon(load.call, caller, *how)
        await wait_until(lambda: load.tally.outcomes["200"] >= ANSWERS_BEFORE)
        before = load.tally.outcomes["200"]
    outcomes = load.tally.outcomes
    assert outcomes.keys() <= {"200", "503", Ending.REFUSED}, outcomes
    assert outcomes[Ending.REFUSED] == len(CALLERS), "each asked until nobody listened any more"
    assert outcomes["200"] > before or not drain_seconds, "while it drained, requests were answered"
    gateway = RedisGateway(redis_url, max_connections=1, deadline_seconds=5, breaker_failures=9, breaker_open_seconds=1)
    store = RedisStateStore(gateway, law=LAW, key_prefix=redis_key_prefix, ttl_seconds=600)
    try:
        assert load.tally.recorded
        for batch in load.tally.recorded:
            assert (await store.state(batch)).reports[PHASE].outcome is Outcome.COMPLETED
    finally:
        await gateway.aclose()
