"""Real Sentinels name the master: failovers, Sentinels that are lost, hang or refuse, and the causes that are named."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from bcs.config.loading import load_settings
from bcs.config.secrets import Secret
from bcs.config.settings import Settings
from bcs.config.store_urls import StoreUrl, redis_url
from bcs.devtools.servers.embedded import EmbeddedServer, free_port
from bcs.errors import RedisUnusable, StoreUnavailable
from bcs.ops.doctor.findings import Finding, Status
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.sentinel import NamedMaster
from tests.integration.conftest import NEVER
from tests.integration.stores import until_it_answers
from tests.support.certificates import Authority
from tests.support.documented import redis_acl
from tests.support.redis_sentinel import SERVICE, SentinelSet, running_sentinels
from tests.support.redis_servers import redis_is_installed, redis_server
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PASSWORD, SENTINEL_PASSWORD = "of-the-data", "of-the-sentinels"
DEADLINE_SECONDS = 1.0
# Beside the deadline: a call may have to wait until the event loop and this busy machine come to it.
SLACK_SECONDS = 0.5
RECOVERY_SECONDS = 5.0


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    directory = tmp_path_factory.mktemp("sentinels")
    with running_sentinels(directory, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD) as running:
        yield running


def url_of(text: str, password: str | None = SENTINEL_PASSWORD) -> StoreUrl:
    return redis_url(text, sentinel_password=Secret(password) if password else None)


@asynccontextmanager
async def gateway_to(url: StoreUrl, *, deadline: float = DEADLINE_SECONDS) -> AsyncIterator[RedisGateway]:
    gateway = RedisGateway(
        url, max_connections=4, deadline_seconds=deadline, breaker_failures=NEVER, breaker_open_seconds=1
    )
    try:
        yield gateway
    finally:
        await gateway.aclose()


@pytest.fixture
async def gateway(sentinels: SentinelSet) -> AsyncIterator[RedisGateway]:
    async with gateway_to(url_of(sentinels.url)) as gateway:
        yield gateway


async def port_of(gateway: RedisGateway) -> int:
    """The port of the server that answers."""
    [[_, port]] = await gateway.call(("CONFIG", "GET", "port"))
    [[_, of_shared]] = await gateway.call_multiplexed(("CONFIG", "GET", "port"))
    assert port == of_shared
    return int(port)


@dataclass
class Load:
    """Writes without a pause, on both kinds of connections, beside a probe as the service has one."""

    gateway: RedisGateway
    written: int = 0
    longest_seconds: float = 0.0
    refusals: list[str] = field(default_factory=list)
    last_refusal_at: float = 0.0

    async def write(self, number: int) -> None:
        send = self.gateway.call if number % 2 else self.gateway.call_multiplexed
        while True:
            watch = Stopwatch()
            try:
                await send(("SET", f"load-{number}", str(self.written)))
                self.written += 1
            except StoreUnavailable as failure:
                self.refusals.append(failure.cause)
                self.last_refusal_at = time.monotonic()
                await anyio.lowlevel.checkpoint()
            self.longest_seconds = max(self.longest_seconds, watch.seconds)

    async def probe(self) -> None:
        while True:
            with suppress(StoreUnavailable):
                await self.gateway.ping()
            # As often as the service asks for signs of life.
            await anyio.sleep(0.1)


@asynccontextmanager
async def under_load(gateway: RedisGateway) -> AsyncIterator[Load]:
    load = Load(gateway)
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(load.write, number)
        tasks.start_soon(load.probe)
        await wait_until(lambda: load.written > 100)
        yield load
        before = load.written
        await wait_until(lambda: load.written > before + 100, RECOVERY_SECONDS)
        tasks.cancel_scope.cancel()
    assert load.longest_seconds < DEADLINE_SECONDS + SLACK_SECONDS, load


@pytest.mark.release
async def test_a_failover_is_followed_under_load_and_every_call_ends_within_its_deadline(
    sentinels: SentinelSet, gateway: RedisGateway
) -> None:
    before, identity = await port_of(gateway), gateway.identity
    async with under_load(gateway) as load:
        await sentinels.fail_over()
        over_at = time.monotonic()
        after = (await sentinels.master()).port
        await wait_until(lambda: f":{after}, the master of" in gateway.address, RECOVERY_SECONDS)
    assert load.last_refusal_at < over_at + RECOVERY_SECONDS
    assert await port_of(gateway) == after != before
    assert gateway.identity != identity


async def test_a_probe_leaves_a_master_that_the_sentinels_name_no_more(sentinels: SentinelSet, tmp_path: Path) -> None:
    """The one that is left still answers as a master, like one that was cut off from the Sentinels alone."""
    with redis_server(tmp_path / "first") as first, redis_server(tmp_path / "second") as second:

        async def name(server: EmbeddedServer) -> None:
            for sentinel in sentinels.sentinels:
                await sentinels.ask(sentinel, "SENTINEL", "MONITOR", "moved", "127.0.0.1", server.port, 2)

        await name(first)
        listed = sentinels.url.rpartition("@")[2].replace(SERVICE, "moved")
        async with gateway_to(url_of(f"redis+sentinel://{listed}")) as gateway:
            await gateway.ping()
            assert await port_of(gateway) == first.port
            for sentinel in sentinels.sentinels:
                await sentinels.ask(sentinel, "SENTINEL", "REMOVE", "moved")
            await name(second)
            assert await port_of(gateway) == first.port, "no probe has asked yet"
            await gateway.ping()
            assert await port_of(gateway) == second.port
        for sentinel in sentinels.sentinels:
            await sentinels.ask(sentinel, "SENTINEL", "REMOVE", "moved")


@pytest.mark.release
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_lost_master_is_replaced_within_seconds(
    sentinels: SentinelSet, gateway: RedisGateway, how: str
) -> None:
    """The old master comes back as a replica, and is never written to meanwhile."""
    await sentinels.wait_until_whole()
    old = await sentinels.master()
    async with under_load(gateway) as load:
        old.kill() if how == "killed" else old.freeze()
        await sentinels.wait_until_not_master(old)
        over_at = time.monotonic()
        await until_it_answers(gateway)
        assert time.monotonic() - over_at < RECOVERY_SECONDS
        if how == "killed":
            await sentinels.restart(old)
        else:
            old.thaw()
        await sentinels.wait_until_whole()
    assert load.last_refusal_at < over_at + RECOVERY_SECONDS
    assert await port_of(gateway) == (await sentinels.master()).port != old.port
    assert (await sentinels.ask(old, "ROLE"))[0] == "slave"


async def test_connections_go_on_without_sentinels_and_new_ones_name_them(
    sentinels: SentinelSet, gateway: RedisGateway
) -> None:
    port = await port_of(gateway)
    assert not gateway.problem
    for sentinel in sentinels.sentinels:
        sentinel.freeze()
    try:
        await gateway.ping()
        assert await port_of(gateway) == port
        assert "no failover would be noticed: no Sentinel of BCS_REDIS_URL answers" in gateway.problem
        assert gateway.partly_reachable
        async with gateway_to(url_of(sentinels.url), deadline=0.3) as another:
            with pytest.raises(StoreUnavailable, match=r"no Sentinel of BCS_REDIS_URL answers \(it did not answer in"):
                await another.call(("GET", "x"))
    finally:
        for sentinel in sentinels.sentinels:
            sentinel.thaw()

    async def is_well() -> bool:
        await gateway.ping()
        return not gateway.problem

    await wait_until(is_well, RECOVERY_SECONDS)


@pytest.mark.parametrize("lost", ["frozen", "away"])
async def test_a_sentinel_that_is_lost_holds_up_nobody(sentinels: SentinelSet, lost: str) -> None:
    first = sentinels.sentinels[0]
    url = url_of(sentinels.url)
    if lost == "away":
        url = url_of(sentinels.url.replace(first.address, f"127.0.0.1:{free_port()}"))
    else:
        first.freeze()
    try:
        async with gateway_to(url, deadline=30) as gateway:
            began = time.monotonic()
            await gateway.ping()
            assert time.monotonic() - began < 5
    finally:
        first.thaw()


@pytest.mark.parametrize(
    ("change", "password", "cause"),
    [
        (lambda url: url, None, "requires a password: put it into BCS_REDIS_SENTINEL_PASSWORD"),
        (lambda url: url, "wrong", "does not accept the user or the password of BCS_REDIS_SENTINEL_PASSWORD"),
        (lambda url: url.replace(SERVICE, "other"), SENTINEL_PASSWORD, "knows the service 'other'"),
        (lambda url: url.replace(PASSWORD, "wrong"), SENTINEL_PASSWORD, "the user or the password of BCS_REDIS_URL"),
    ],
    ids=["no password", "wrong password", "unknown service", "wrong password of the master"],
)
async def test_what_sentinels_refuse_is_named(
    sentinels: SentinelSet, change: Callable[[str], str], password: str | None, cause: str
) -> None:
    async with gateway_to(url_of(change(sentinels.url), password)) as gateway:
        for ask in (lambda: gateway.call(("GET", "x")), lambda: gateway.call_multiplexed(("GET", "x")), gateway.ping):
            with pytest.raises(StoreUnavailable) as raised:
                await ask()
            assert cause in raised.value.cause
            for secret in (PASSWORD, SENTINEL_PASSWORD, "wrong"):
                assert secret not in str(raised.value)
        await gateway.ensure_usable()  # it may be usable later


async def test_the_documented_rights_are_enough_and_the_password_may_change(
    sentinels: SentinelSet, tmp_path: Path
) -> None:
    async def on_each(*command: str) -> None:
        for sentinel in sentinels.sentinels:
            await sentinels.ask(sentinel, *command)

    await on_each(*redis_acl("first", "redis acl of a sentinel"))
    file = tmp_path / "password"
    file.write_text("first")
    url = redis_url(sentinels.url, sentinel_username=Secret("bcs"), sentinel_password=Secret.from_file(file))
    async with gateway_to(url) as gateway:
        assert gateway.sentinels
        for _ in range(2):
            await gateway.ping()
            answers = await gateway.sentinels.each()
            assert all(isinstance(answer, NamedMaster) and answer.epoch >= 0 for answer in answers.values()), answers
            await on_each("ACL", "SETUSER", "bcs", "resetpass", ">second")
            await on_each("CLIENT", "KILL", "USER", "bcs")
            file.write_text("second")


async def test_a_server_that_is_no_sentinel_is_refused_for_good(redis_url: str) -> None:
    address = redis_url.removeprefix("redis://").partition("/")[0]
    async with gateway_to(url_of(f"redis+sentinel://{address}/main", None)) as gateway:
        with pytest.raises(RedisUnusable, match="it is not a Sentinel"):
            await gateway.ensure_usable()


async def test_a_sentinel_s_connection_that_was_closed_is_made_again(
    sentinels: SentinelSet, gateway: RedisGateway
) -> None:
    await gateway.ping()
    for sentinel in sentinels.sentinels:
        await sentinels.ask(sentinel, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    async with gateway_to(url_of(sentinels.url)) as another:
        await another.ping()
    assert gateway.sentinels
    answers = await gateway.sentinels.each()
    assert not [answer for answer in answers.values() if isinstance(answer, Exception)], answers


@pytest.mark.release
@pytest.mark.skipif(not redis_is_installed(), reason="no Debian Redis: the Valkey wheel speaks no TLS")
async def test_sentinels_and_servers_speak_tls(tmp_path: Path, sentinels: SentinelSet) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("server"), authority.certificate
    async with SentinelSet(
        tmp_path / "tls", password=PASSWORD, sentinel_password=SENTINEL_PASSWORD, tls=tls
    ) as secured:
        async with gateway_to(url_of(f"{secured.url}?ssl_ca_certs={authority.certificate}")) as gateway:
            async with under_load(gateway):
                await secured.fail_over()
            master = await secured.master()
            [[_, port]] = await gateway.call(("CONFIG", "GET", "tls-port"))
            assert int(port) == master.port
        for url, cause in (
            (secured.url, "check the ssl_* options of BCS_REDIS_URL"),
            (secured.url.replace("rediss+", "redis+"), "BCS_REDIS_URL must begin with rediss"),
            (f"{sentinels.url.replace('redis+', 'rediss+')}?ssl_cert_reqs=none", "it did not answer in time"),
        ):
            async with gateway_to(url_of(url)) as gateway:
                with pytest.raises(StoreUnavailable) as raised:
                    await gateway.ping()
                assert cause in raised.value.cause


def settings_of(sentinels: SentinelSet, password: str = SENTINEL_PASSWORD) -> Settings:
    return load_settings(redis_url=sentinels.url, redis_sentinel_password=password, redis_deadline_seconds=0.5)


async def test_doctor_looks_at_master_and_sentinels(sentinels: SentinelSet) -> None:
    by_check = found_in(await check_redis(settings_of(sentinels)))
    assert by_check["redis"][0][1].startswith("reachable, Valkey ")
    assert by_check["redis replicas"] == [(Status.OK, "1 connected to the master")]
    assert by_check["outbox"][0][0] is Status.OK
    master = (await sentinels.master()).address
    named = [(Status.OK, f"{one.address}: names the master {master}") for one in sentinels.sentinels]
    assert by_check["redis sentinel"] == named
    sentinels.sentinels[0].freeze()
    try:
        first, *others = found_in(await check_redis(settings_of(sentinels)))["redis sentinel"]
    finally:
        sentinels.sentinels[0].thaw()
    assert first == (Status.WARNING, f"{sentinels.sentinels[0].address}: it did not answer in time")
    assert others == named[1:]


async def test_doctor_names_what_the_sentinels_refuse(sentinels: SentinelSet) -> None:
    by_check = found_in(await check_redis(settings_of(sentinels, "wrong")))
    for status, text in (*by_check["redis"], *by_check["redis sentinel"]):
        assert status is Status.FAILED
        assert "BCS_REDIS_SENTINEL_PASSWORD" in text
    assert len(by_check["redis sentinel"]) == len(sentinels.sentinels)


def found_in(findings: Sequence[Finding]) -> dict[str, list[tuple[Status, str]]]:
    by_check: dict[str, list[tuple[Status, str]]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append((finding.status, finding.found))
    return by_check
