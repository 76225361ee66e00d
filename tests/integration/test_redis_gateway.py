"""The Redis gateway when Redis is away, frozen, slow, busy or full, and when callers are cancelled half way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.errors import StoreUnavailable
from bcs.storage.committing import CommitPolicy
from bcs.storage.ports import Committed
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import (
    DELTA,
    ByTransaction,
    MakeGateway,
    MakeStore,
    echo,
    fails,
    same_but_for_the_version,
    until_it_answers,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

CONNECTIONS = 4
# How much longer than its deadline something may take on a busy machine.
SLACK_SECONDS = 1.0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    watch = Stopwatch()
    yield
    assert watch.seconds < seconds + SLACK_SECONDS


async def all_connections_work(gateway: RedisGateway, connections: int = CONNECTIONS) -> None:
    """Hold all connections at once, which needs every slot of the pool."""
    inside = 0
    everyone = anyio.Event()

    async def hold(name: bytes) -> None:
        nonlocal inside
        async with gateway.session() as session:
            inside += 1
            if inside == connections:
                everyone.set()
            await everyone.wait()
            assert await session.call(("ECHO", name)) == [name]

    async with anyio.create_task_group() as group:
        for number in range(connections):
            group.start_soon(hold, b"%d" % number)


async def test_away_at_start_is_told_promptly_and_needs_no_new_gateway_later(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    proxy.refuse()
    gateway = make_gateway(proxy.address)
    with within(0):
        await fails(gateway, 3)
        with pytest.raises(StoreUnavailable):
            await gateway.ping()
    proxy.accept()
    assert await echo(gateway)
    await gateway.ping()


async def test_a_name_that_cannot_be_resolved_is_told_promptly(make_gateway: MakeGateway) -> None:
    with within(0.3):
        await fails(make_gateway("nowhere.invalid:6379"))


async def test_a_killed_server_is_noticed_and_so_is_its_return(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer, in_redis: MakeStore
) -> None:
    gateway = make_gateway(private_valkey.address)
    store = in_redis(gateway)
    await store.commit("b", DELTA)
    private_valkey.kill()
    with within(0.6):
        await fails(gateway, 2)
    private_valkey.start()
    await until_it_answers(gateway)
    assert await store.state("b") == DELTA
    await all_connections_work(gateway)


async def test_a_connection_that_breaks_during_a_call_fails_at_once(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    assert await echo(gateway)
    proxy.freeze()
    with within(0):
        async with anyio.create_task_group() as group:
            group.start_soon(fails, gateway)
            await wait_until(lambda: gateway_is_busy(gateway))
            await proxy.cut()
    proxy.thaw()
    assert await echo(gateway)


def gateway_is_busy(gateway: RedisGateway) -> bool:
    return gateway._slots.value < (gateway._slots.max_value or 0)


async def test_a_frozen_server_fails_in_time_and_answers_correctly_afterwards(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer
) -> None:
    gateway = make_gateway(private_valkey.address)
    await all_connections_work(gateway)
    private_valkey.freeze()
    with within(0.3):
        async with anyio.create_task_group() as group:
            for _ in range(CONNECTIONS):
                group.start_soon(fails, gateway)
    private_valkey.thaw()
    for number in range(50):
        assert await echo(gateway, b"after %d" % number)
    await all_connections_work(gateway)


async def test_everyone_who_waits_for_a_frozen_server_is_told_soon(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=CONNECTIONS)
    proxy.freeze()
    with within(0.6):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(fails, gateway)
    assert gateway.circuit == "open"


async def test_a_caller_waiting_for_its_turn_can_be_cancelled_at_once(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=5, connections=1)
    assert await echo(gateway)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(echo, gateway)
        await wait_until(lambda: gateway_is_busy(gateway))
        with within(0):
            with anyio.move_on_after(0.01) as patience:
                await echo(gateway)
            assert patience.cancelled_caught
        proxy.thaw()


async def test_a_cancelled_call_ends_within_the_deadline(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    gateway = make_gateway(proxy.address)
    proxy.freeze()
    with within(0.3), anyio.move_on_after(0.01):
        await fails(gateway)
    proxy.thaw()
    assert await echo(gateway)


async def test_a_cancelled_round_trip_is_carried_through_on_its_connection(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=5, connections=1)
    before = await gateway.call(("CLIENT", "ID"))
    proxy.delay(0.1)
    with anyio.move_on_after(0.01) as patience:
        await gateway.call(("ECHO", b"cancelled"))
        await anyio.lowlevel.checkpoint()
    assert patience.cancelled_caught
    assert await gateway.call(("CLIENT", "ID")) == before


async def test_a_session_that_failed_leaves_no_watch_to_the_next_one(
    make_gateway: MakeGateway, redis_url: str, redis_key_prefix: str
) -> None:
    gateway = make_gateway(redis_url, deadline=5, connections=1)
    with suppress(ValueError):
        async with gateway.session() as session:
            await session.call(("WATCH", redis_key_prefix))
            raise ValueError("the test says so")
    await gateway.call(("SET", redis_key_prefix, "written", "PX", 60_000))
    *_, replies = await gateway.call(("MULTI",), ("GET", redis_key_prefix), ("EXEC",))
    assert replies == [b"written"]


@pytest.mark.parametrize("seed", range(3))
async def test_replies_are_never_mixed_up_however_callers_are_cancelled(
    make_gateway: MakeGateway, proxy: FaultProxy, redis_key_prefix: str, seed: int
) -> None:
    chance = random.Random(seed)
    gateway = make_gateway(proxy.address, deadline=0.25, connections=8)
    names = [f"{redis_key_prefix}{number}" for number in range(200)]
    await gateway.call(*(("SET", name, name, "PX", 60_000) for name in names))
    answers: Counter[int] = Counter()  # of each kind

    async def get(name: str) -> None:
        # One round trip, two in a transaction, several commands in one, or shared ones: all of them can be cut off.
        kind = chance.randrange(5)
        try:
            if kind == 0:
                assert await gateway.call(("GET", name)) == [name.encode()]
            elif kind == 1:
                assert await gateway.call(("GET", name), ("ECHO", "x"), ("GET", name)) == [
                    name.encode(),
                    b"x",
                    name.encode(),
                ]
            elif kind == 2:
                assert await gateway.call_multiplexed(("GET", name)) == [name.encode()]
            elif kind == 3:
                *_, replies = await gateway.call_multiplexed(("MULTI",), ("GET", name), ("ECHO", "x"), ("EXEC",))
                assert replies == [name.encode(), b"x"]
            else:
                async with gateway.session() as session:
                    assert await session.call(("WATCH", name), ("GET", name)) == [b"OK", name.encode()]
                    replies = await session.call(("MULTI",), ("GET", name), ("EXEC",))
                    assert replies[-1] == [name.encode()]
        except StoreUnavailable:
            return
        answers[kind] += 1

    async def get_or_lose_patience(name: str) -> None:
        with anyio.move_on_after(chance.uniform(0, 0.05)):
            await get(name)

    for round_number in range(4):
        proxy.delay(chance.uniform(0, 0.01))
        native = [asyncio.create_task(get(name)) for name in chance.sample(names, 40)]
        async with anyio.create_task_group() as group:
            for name in chance.sample(names, 120):
                group.start_soon(get_or_lose_patience if chance.random() < 0.7 else get, name)
            if round_number % 2:
                proxy.freeze()
            with anyio.move_on_after(chance.uniform(0.01, 0.05)):
                await anyio.sleep_forever()
            for task in native:  # what asyncio's own cancellation, which no shield holds back, must not break either
                task.cancel()
            proxy.thaw()
        ended = await asyncio.gather(*native, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ended), ended
    assert min(answers[kind] for kind in range(5)) >= 5
    proxy.delay(0)
    for name in names:
        assert await gateway.call(("GET", name)) == [name.encode()]
    await all_connections_work(gateway, 8)


@pytest.mark.parametrize("when", ["connecting", "connected"])
async def test_many_timeouts_use_up_no_connections(make_gateway: MakeGateway, proxy: FaultProxy, when: str) -> None:
    gateway = make_gateway(proxy.address, deadline=0.1)
    if when == "connected":
        await all_connections_work(gateway)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        for _ in range(5 * CONNECTIONS):
            group.start_soon(fails, gateway)
    if when == "connecting":
        await proxy.cut()
    proxy.thaw()
    await until_it_answers(gateway)
    await all_connections_work(gateway)
    assert proxy.connections_open <= CONNECTIONS


async def test_a_sign_of_life_takes_no_connection_away_from_callers(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=5)
    await all_connections_work(gateway)
    proxy.delay(0.1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(gateway.ping)
        for _ in range(3 * CONNECTIONS):
            group.start_soon(echo, gateway)


@pytest.mark.parametrize("kind", [RedisStateStore, ByTransaction])
@pytest.mark.parametrize("attempts", [1, 5])
async def test_a_commit_whose_reply_is_lost_has_its_effect_once_when_repeated(
    make_gateway: MakeGateway, proxy: FaultProxy, in_redis: MakeStore, attempts: int, kind: type[RedisStateStore]
) -> None:
    store = in_redis(make_gateway(proxy.address, deadline=5), CommitPolicy(attempts), kind=kind)
    await store.commit("another", DELTA)  # from now on Redis has the script
    proxy.drop_replies(b"EVALSHA" if kind is RedisStateStore else b"EXEC")
    if kind is RedisStateStore and attempts > 1:
        assert await store.commit("b", DELTA) == Committed(), "another attempt is enough"
    else:
        with pytest.raises(StoreUnavailable):
            await store.commit("b", DELTA)
    assert proxy.replies_dropped == 1
    summary = await store.summary("b")
    assert same_but_for_the_version(summary, DELTA)
    await store.commit("b", DELTA)
    assert await store.state("b") == DELTA
    assert await store.summary("b") == summary, "facts that are known already change nothing"
