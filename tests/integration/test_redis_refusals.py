"""Redis refuses commands: the reason is named, no dead letter is written, and accepted commands go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bcs.actors.messages import ApplyFacts, DeliveryToken
from bcs.devtools.servers.embedded import HOST, EmbeddedServer, free_port
from bcs.domain.state import delta_of
from bcs.errors import RedisUnusable, StoreUnavailable
from bcs.ops.doctor.findings import Finding, Status
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from bcs.wire.published import ConsumedMessage, OutboundMessage
from tests.integration.stores import BREAKER_FAILURES, DELTA, MakeGateway, MakeStore, completed, echo
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.redis_queues import archive_queue, redis_outbox
from tests.support.redis_servers import redis_server
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PROMPT_SECONDS = 2.0
USER = ("ACL", "SETUSER", "bcs", "on", ">secret", "~*", "+@all")
MESSAGE = OutboundMessage("dead_letter", "topic", b"key", b"value")

REASONS = {
    "MOVED 3999 127.0.0.1:6381": "Redis Cluster",
    "MOVED 3999 127.0.0.1:6381 and more words than redis-py takes apart": "",
    "ASK 3999 127.0.0.1:6381": "Redis Cluster",
    "CROSSSLOT Keys in request don't hash to the same slot": "Redis Cluster",
    "TRYAGAIN Multiple keys request during rehashing of slot": "Redis Cluster",
    "CLUSTERDOWN Hash slot not served": "Redis Cluster",
    "NOPERM this user has no permissions to run the 'hget' command": "lacks a right",
    "NOAUTH Authentication required.": "password",
    "WRONGPASS invalid username-password pair or user is disabled.": "password",
    "OOM command not allowed when used memory > 'maxmemory'.": "memory is full",
    "MISCONF Redis is configured to save RDB snapshots": "disk",
    "READONLY You can't write against a read only replica.": "replica",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "replica",
    "NOREPLICAS Not enough good replicas to write.": "too few replicas",
    "LOADING Redis is loading the dataset in memory": "loads its data",
    "BUSY Redis is busy running a script.": "busy",
    "EXECABORT Transaction discarded because of previous errors.": "EXECABORT",
    "NOBODYKNOWS a server of the future": "NOBODYKNOWS",
    "ERR a server of the future": "a server of the future",
    "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed": "memory is full",
}


@pytest.mark.parametrize("text", REASONS)
async def test_a_refusal_counts_as_unavailable_with_its_reason(gateway: RedisGateway, text: str) -> None:
    refused = ("EVAL", "return redis.error_reply(ARGV[1])", 0, text)
    for send in (gateway.call, gateway.call_multiplexed):
        for commands in ([refused], [("MULTI",), refused, ("EXEC",)]):
            with pytest.raises(StoreUnavailable) as raised:
                await send(*commands)
            assert REASONS[text] in raised.value.cause
            assert raised.value.store == "redis"


async def test_an_unknown_command_is_named_without_its_arguments(gateway: RedisGateway) -> None:
    with pytest.raises(StoreUnavailable) as raised:
        await gateway.call(("NOSUCHCOMMAND", "an argument"))
    assert "NOSUCHCOMMAND" in raised.value.cause
    assert "an argument" not in raised.value.cause


@pytest.fixture
async def control(private_valkey: EmbeddedServer, make_gateway: MakeGateway) -> RedisGateway:
    """A gateway to the server of `limited`, as a user with all rights."""
    gateway = make_gateway(private_valkey.address, deadline=5)
    await gateway.call(USER)
    return gateway


@pytest.fixture
def limited(private_valkey: EmbeddedServer, make_gateway: MakeGateway, control: RedisGateway) -> RedisGateway:
    """A gateway as a user whose rights can be removed."""
    return make_gateway(url_of(private_valkey), deadline=5, failures=BREAKER_FAILURES)


def url_of(server: EmbeddedServer) -> str:
    return f"redis://bcs:secret@{server.address}"


async def test_of_a_refused_transaction_the_first_cause_is_named(
    control: RedisGateway, limited: RedisGateway, in_redis: MakeStore
) -> None:
    await control.call((*USER, "-hset"))
    for use in (limited.call, limited.call_multiplexed):
        with pytest.raises(StoreUnavailable, match="hset"):
            await use(("MULTI",), ("HSET", "key", "field", "value"), ("EXEC",))
    with pytest.raises(StoreUnavailable, match="hset"):
        await in_redis(limited).commit("b", DELTA)


async def test_a_refused_command_does_not_stop_the_others(control: RedisGateway, limited: RedisGateway) -> None:
    await control.call((*USER, "-xautoclaim"))
    for _ in range(BREAKER_FAILURES * 2):
        with pytest.raises(StoreUnavailable):
            await limited.call(("XAUTOCLAIM", "stream", "group", "consumer", 0, "0"))
        with pytest.raises(StoreUnavailable):
            await limited.call_multiplexed(("XAUTOCLAIM", "stream", "group", "consumer", 0, "0"))
    assert limited.circuit == "closed"
    assert await echo(limited)


async def test_a_foreign_key_in_a_queue_s_place_buries_no_facts(gateway: RedisGateway, redis_key_prefix: str) -> None:
    """The items are valid, and an operator can delete the key."""
    outbox = redis_outbox(gateway, redis_key_prefix, streams=1)
    backlog = archive_queue(gateway, redis_key_prefix, streams=1)
    for stream in ("{outbox}", "{outbox}:archive"):
        await gateway.call(("SET", f"{redis_key_prefix}{stream}", "x", "PX", 60_000))
    for use in (lambda: outbox.append([MESSAGE]), lambda: outbox.lease(1), outbox.backlog, backlog.backlog):
        with pytest.raises(StoreUnavailable, match="not a stream"):
            await use()
    with pytest.raises(StoreUnavailable, match="has another type"):
        await backlog.waiting("batch")


@dataclass(frozen=True)
class Way:
    """A way in which Redis refuses facts.

    :param begin: has the server refuse them.
    :param end: has the server take them again.
    :param reason: part of what /healthz and doctor say.
    :param define: the status of an answer meanwhile.
    """

    begin: Sequence[Command]
    end: Sequence[Command]
    reason: str
    define: int = 200


def setting(name: str, value: object, usual: object, reason: str) -> Way:
    return Way([("CONFIG", "SET", name, str(value))], [("CONFIG", "SET", name, str(usual))], reason)


NO_SAVES = [("CONFIG", "SET", "save", "")]
WAYS = {
    "no right to write": Way([(*USER, "-hset")], [USER], "'hset'"),
    "memory is full": setting("maxmemory", 1, 0, "memory is full"),
    "no right to read": Way([(*USER, "-hmget")], [USER], "'hmget'", define=503),
    "no right to the keys": Way([(*USER, "resetkeys", "~other:*")], [USER], " a key", define=503),
    "no right to scripts and streams": Way([(*USER, "-@scripting", "-@stream")], [USER], "'eval'"),
    "too few replicas": setting("min-replicas-to-write", 1, 0, "too few replicas"),
    "disk is not writable": Way([("CONFIG", "SET", "save", "3600 1"), ("BGSAVE",)], NO_SAVES, "write to its disk"),
}


async def redis_problem(orchestrator: Orchestrator) -> str:
    """The problem with Redis in /healthz; empty without a problem."""
    answer = await orchestrator.get("/healthz")
    assert answer.status == 200
    redis = answer.json["dependencies"]["redis"]
    if redis["status"] == "healthy":
        return ""
    assert answer.json["status"] == "degraded"
    problem: str = redis["message"]
    return problem


async def is_well(orchestrator: Orchestrator) -> bool:
    return not await redis_problem(orchestrator)


async def findings(service: RunningService) -> list[Finding]:
    """Doctor's findings about the service's Redis."""
    return await check_redis(service.service.settings)


async def test_facts_wait_while_redis_refuses_them_and_the_reason_is_named(
    private_valkey: EmbeddedServer, control: RedisGateway, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = ConsumedMessage(topics.SPELLCHECK_COMPLETED, 0, 7, timestamp_ms=1, key=batch.encode(), value=b"its bytes")
    token = DeliveryToken(message, "SpellcheckPhaseCompletedV1", "correlation", 1)
    way = WAYS["no right to write"]
    async with (
        running_service(redis_url=url_of(private_valkey), kafka_bootstrap_servers="127.0.0.1:1") as service,
        Orchestrator(service.base) as orchestrator,
    ):
        batches, store, outbox = service.service.batches, service.service.store, service.service.outbox
        await control.call(*way.begin)
        service.call(batches.deliver_nowait, batch, ApplyFacts(batch, (completed("e1"),), token))

        async def is_named() -> bool:
            return way.reason in await redis_problem(orchestrator)

        await wait_until(is_named)
        [cause] = [vars(record)["cause"] for record in caplog.records if record.msg == "redis_refuses"]
        [finding] = [finding for finding in await findings(service) if finding.check == "redis commands"]
        assert finding.status is Status.FAILED
        assert way.reason in cause
        assert way.reason in finding.found
        watch = Stopwatch()
        assert (await orchestrator.complete(batch, "nlp")).status == 503, "at once, though the batch's actor waits"
        assert watch.seconds < PROMPT_SECONDS
        await control.call(*way.end)
        await wait_until(lambda: service.run(store.state, batch) == delta_of([completed("e1")]))
        assert service.run(outbox.backlog) == 0, "there is no dead letter"
        assert await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") in (None, 0)


@pytest.mark.release
async def test_whatever_redis_refuses_no_fact_is_buried_and_the_reason_is_named(
    private_valkey: EmbeddedServer,
    control: RedisGateway,
    module_kafka: str,
    batch: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("bcs.storage.redis.gateway._REFUSAL_SECONDS", 0.1)
    # Where a snapshot would go: none can be made.
    (private_valkey.directory / "dump.rdb").mkdir()
    async with (
        Platform(module_kafka) as platform,
        running_service(redis_url=url_of(private_valkey), kafka_bootstrap_servers=module_kafka) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(registered(batch, ["e0"]))
        await wait_until(lambda: platform.caught_up(service.group))
        for name, way in WAYS.items():
            refused = f"{batch}, {name}"
            await wait_until(lambda: is_well(orchestrator))
            caplog.clear()
            await control.call(*way.begin)
            await platform.send(registered(refused, ["e1"]), spellchecked(refused, "e1"))

            async def is_named(way: Way = way) -> bool:
                return way.reason in await redis_problem(orchestrator)

            await wait_until(is_named, description=name)
            assert [vars(record)["cause"] for record in caplog.records if record.msg == "redis_refuses"], name
            [finding] = [one for one in await findings(service) if one.check == "redis commands"]
            assert (finding.status, way.reason in finding.found) == (Status.FAILED, True), (name, finding)
            assert (await orchestrator.define(batch)).status == way.define, name
            await control.call(*way.end)
            await wait_until(lambda: platform.caught_up(service.group), description=name)
            assert await orchestrator.to_run(refused) == ["ai_feedback"], name
        counted = {name for name, _, value in await orchestrator.samples() if value}
        assert not counted & {"bcs_dead_letters_total", "bcs_actor_restarts_total"}
        await wait_until(lambda: is_well(orchestrator))
        assert not [finding for finding in await findings(service) if finding.check == "redis commands" and finding.fix]


@pytest.fixture
async def half_a_cluster(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A node with half of the slots, and a user `bcs`; another node has the rest."""
    async with AsyncExitStack() as stack:
        nodes: list[Redis] = []
        buses = [free_port(), free_port()]
        for bus, slots in zip(buses, ((0, 8191), (8192, 16383)), strict=True):
            server = redis_server(tmp_path / str(bus), "--cluster-enabled", "yes", "--cluster-port", str(bus))
            stack.enter_context(server)
            nodes.append(await stack.enter_async_context(Redis.from_url(f"redis://{server.address}")))
            await nodes[-1].cluster("ADDSLOTSRANGE", *slots)
        await nodes[0].cluster("MEET", HOST, server.port, buses[1])

        async def is_whole() -> bool:
            told = [await node.cluster("INFO") for node in nodes]
            return [one["cluster_state"] for one in told] == ["ok", "ok"]

        await wait_until(is_whole)
        yield server


@pytest.mark.release
@pytest.mark.parametrize("may_tell", [True, False])
async def test_a_cluster_node_is_named_as_the_cause_and_no_fact_is_lost(
    half_a_cluster: EmbeddedServer,
    make_gateway: MakeGateway,
    module_kafka: str,
    unique_name: Callable[[str], str],
    may_tell: bool,
) -> None:
    """The start is refused. A node that may not report its mode is found later by its redirections."""
    async with (
        Redis.from_url(f"redis://{half_a_cluster.address}") as control,
        Platform(module_kafka) as platform,
    ):
        forbidden = [] if may_tell else ["-info", "-role"]
        await control.acl_setuser(
            "bcs", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", *forbidden]
        )
        if may_tell:
            with pytest.raises(RedisUnusable, match="Redis Cluster"):
                async with running_service(redis_url=url_of(half_a_cluster), kafka_bootstrap_servers=module_kafka):
                    pass
            return
        async with (
            running_service(redis_url=url_of(half_a_cluster), kafka_bootstrap_servers=module_kafka) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            batches = [unique_name("batch") for _ in range(10)]
            for batch in batches:
                await platform.send(registered(batch, ["e1"]), spellchecked(batch, "e1"))

            async def is_named() -> bool:
                return "Redis Cluster" in await redis_problem(orchestrator)

            await wait_until(is_named)
            statuses = {(await orchestrator.define(batch, "spellcheck")).status for batch in batches}
            assert 500 not in statuses
            assert 503 in statuses
            assert "Redis Cluster" in str(await findings(service))
            counted = {name for name, _, value in await orchestrator.samples() if value}
            assert not counted & {"bcs_dead_letters_total", "bcs_actor_restarts_total"}
