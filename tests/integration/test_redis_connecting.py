"""A server that BCS does not support counts as out of reach, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcs.devtools.servers.embedded import EmbeddedServer, free_port
from bcs.errors import StoreUnavailable
from bcs.ops.doctor.findings import Status
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import MakeGateway
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_servers import redis_server
from tests.support.service import BcsProcess, Orchestrator, running_service
from tests.support.waiting import wait_until

TOO_OLD = re.compile(r"Redis 5\.[\d.]+ is older than 6\.2")

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def locked_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A node of a cluster, with a password."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--requirepass", "secret")
    with redis_server(tmp_path_factory.mktemp("cluster"), *options) as server:
        yield server


async def assert_out_of_reach(gateway: RedisGateway, reason: str) -> None:
    for ask in (lambda: gateway.call(("GET", "x")), lambda: gateway.call_multiplexed(("GET", "x")), gateway.ping):
        with pytest.raises(StoreUnavailable) as raised:
            await ask()
        assert reason in raised.value.cause
        assert not raised.value.answered
        assert "secret" not in raised.value.cause


async def test_a_database_that_is_not_there_is_named(make_gateway: MakeGateway, redis_url: str) -> None:
    await assert_out_of_reach(make_gateway(f"{redis_url.removesuffix('/0')}/4711"), "no database")


@pytest.mark.parametrize(
    ("login", "database", "reason"),
    [
        ("", 0, "it requires a password"),
        (":wrong@", 0, "does not accept the user or the password"),
        (":secret@", 1, "no database of the number"),
    ],
)
async def test_a_refused_login_or_database_is_named(
    make_gateway: MakeGateway, locked_cluster: EmbeddedServer, login: str, database: int, reason: str
) -> None:
    await assert_out_of_reach(make_gateway(f"redis://{login}{locked_cluster.address}/{database}"), reason)


async def test_a_server_that_refuses_to_connect_opens_the_circuit(make_gateway: MakeGateway, redis_url: str) -> None:
    gateway = make_gateway(f"{redis_url.removesuffix('/0')}/4711", failures=2)
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as raised:
            await gateway.call(("GET", "x"))
    assert gateway.circuit == "open"
    assert "circuit breaker open" in raised.value.cause
    assert "no database" in raised.value.cause


async def test_with_a_database_that_is_not_there_the_probes_name_it(redis_url: str) -> None:
    missing = f"{redis_url.removesuffix('/0')}/4711"
    async with (
        running_service(redis_url=missing, kafka_bootstrap_servers="127.0.0.1:1") as service,
        Orchestrator(service.base) as orchestrator,
    ):

        async def is_named() -> bool:
            health = await orchestrator.get("/healthz")
            assert (health.status, health.json["status"]) == (200, "degraded")
            return "no database" in health.json["dependencies"]["redis"]["message"]

        await wait_until(is_named)
        for answer in (
            await orchestrator.get("/readyz"),
            await orchestrator.define("batch"),
            await orchestrator.complete("batch", "nlp"),
        ):
            assert answer.status == 503, answer.body
        assert service.restarted() == []


async def test_a_redis_that_is_too_old_is_named_by_everyone_and_once_in_the_log(
    proxy: FaultProxy, kafka_bootstrap_servers: str, redis_key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_service(
            redis_url=f"redis://{proxy.address}",
            kafka_bootstrap_servers=kafka_bootstrap_servers,  # the publisher asks Redis only while it has Kafka
            kafka_consumer_group_id=redis_key_prefix,
            redis_breaker_open_seconds=0.01,
            retry_maximum_seconds=0.01,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):

        def causes(event: str, key: str) -> list[str]:
            """The causes in the log; the cut of a connection may be a cause before."""
            said = [str(vars(record)[key]) for record in caplog.records if record.msg == event]
            return [cause for cause in said if TOO_OLD.search(cause)]

        async def is_named() -> bool:
            health = await orchestrator.get("/healthz")
            assert (health.status, health.json["status"]) == (200, "degraded")
            return bool(TOO_OLD.search(health.json["dependencies"]["redis"]["message"]))

        # One that was there at the start already would have ended it.
        proxy.edit_replies({b"redis_version:7.": b"redis_version:5.", b"valkey_version:": b"valley_version:"})
        await proxy.cut()
        await wait_until(lambda: proxy.connections_accepted > 20)
        await wait_until(is_named)
        assert len(await wait_until(lambda: causes("redis_unreachable", "cause"))) == 1
        [finding] = await check_redis(service.service.settings)
        assert finding.status is Status.FAILED
        assert TOO_OLD.search(finding.found)
        assert await wait_until(lambda: causes("waiting_for_dependency", "error"))
        assert await orchestrator.metric("bcs_redis_up", store="redis") == 0
        assert await orchestrator.metric("bcs_actor_waits_seconds", actor="publisher")
        assert (await orchestrator.define("batch")).status == (await orchestrator.get("/readyz")).status == 503


async def test_a_cluster_whose_slots_lie_elsewhere_is_refused_and_named(
    make_gateway: MakeGateway, locked_cluster: EmbeddedServer
) -> None:
    """Valkey reports this before any key is used."""
    await assert_out_of_reach(make_gateway(f"redis://:secret@{locked_cluster.address}"), "Redis Cluster")


async def test_a_service_does_not_start_on_a_node_of_a_cluster(locked_cluster: EmbeddedServer, tmp_path: Path) -> None:
    environment = {"BCS_REDIS_URL": f"redis://:secret@{locked_cluster.address}", "BCS_HTTP_PORT": 0}
    with BcsProcess(tmp_path, "serve", forked=True, **environment) as process:
        assert await process.ended() == 2
    [message] = process.log.read_text().splitlines()
    assert message.startswith("bcs: BCS_REDIS_URL leads to a server that BCS does not support: ")
    assert "Redis Cluster" in message
