"""The shared connection to Redis: callers share round trips, and no caller affects another."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.abc
import pytest
from redis.exceptions import ResponseError

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.errors import StoreUnavailable
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.multiplexer import _SharedConnection
from tests.integration.stores import MakeGateway
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def echo(gateway: RedisGateway, text: bytes = b"hello") -> bool:
    return await gateway.call_multiplexed(("ECHO", text)) == [text]


async def fails(gateway: RedisGateway) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as raised:
        await echo(gateway)
    return raised.value


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands went out in each write."""
    together, flush, thread = list[int](), _SharedConnection._flush, threading.get_ident()

    def noted(shared: _SharedConnection) -> None:
        # A service that other tests of this process share runs in a thread of its own.
        if shared._outgoing and threading.get_ident() == thread:
            together.append(len(shared._outgoing))
        flush(shared)

    monkeypatch.setattr(_SharedConnection, "_flush", noted)
    # The server's role is asked at intervals; that command would be counted, too.
    monkeypatch.setattr("bcs.storage.redis.identity.CHECK_SECONDS", math.inf)
    return together


def waiting(gateway: RedisGateway) -> int:
    shared = gateway._shared._shared
    return len(shared._pending) if shared else 0


async def test_calls_of_one_turn_share_a_write_and_wait_for_no_other_answer(
    make_gateway: MakeGateway, proxy: FaultProxy, together: list[int]
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    assert await echo(gateway)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(echo, gateway, b"first-%d" % number)
        await wait_until(lambda: sum(together) == 6)
        for number in range(3):
            group.start_soon(echo, gateway, b"second-%d" % number)
        await wait_until(lambda: waiting(gateway) == 8)
        proxy.thaw()
    assert together == [1, 5, 3]
    assert proxy.connections_open == 1


@pytest.mark.parametrize("natively", [True, False])
@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_who_gives_up_takes_nobody_along(
    make_gateway: MakeGateway, proxy: FaultProxy, cancelled: int, natively: bool
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    assert await echo(gateway)
    proxy.freeze()
    scopes, answers = [anyio.CancelScope() for _ in range(3)], list[int]()

    async def ask(number: int) -> None:
        with scopes[number]:
            assert await gateway.call_multiplexed(("ECHO", number), ("ECHO", "x")) == [b"%d" % number, b"x"]
            answers.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(3)]
    await wait_until(lambda: waiting(gateway) == 3)
    if natively:
        tasks[cancelled].cancel()
    else:
        scopes[cancelled].cancel()
    await asyncio.wait([tasks[cancelled]])
    proxy.thaw()
    await asyncio.wait(tasks)
    assert answers == [number for number in range(3) if number != cancelled]
    assert await echo(gateway)


async def test_a_lost_connection_is_told_to_each_counted_once_and_replaced(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway, failures = make_gateway(proxy.address, deadline=20, failures=2), list[StoreUnavailable]()
    assert await echo(gateway)
    proxy.freeze()

    async def fail() -> None:
        failures.append(await fails(gateway))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(fail)
        await wait_until(lambda: waiting(gateway) == 10)
        await proxy.cut()
    assert len({id(failure) for failure in failures}) == 10, "an exception that several raise grows for ever"
    assert gateway.circuit == "closed", "one connection that breaks is no outage"
    proxy.thaw()
    assert await echo(gateway)


async def test_a_silent_server_fails_at_the_deadline_and_is_reconnected(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer
) -> None:
    gateway = make_gateway(private_valkey.address, deadline=0.2, failures=1000)
    assert await echo(gateway)
    private_valkey.freeze()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(fails, gateway)
    private_valkey.thaw()
    for number in range(20):
        assert await echo(gateway, b"after %d" % number)


async def test_a_server_that_ends_is_noticed_without_a_question(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer
) -> None:
    gateway = make_gateway(private_valkey.address, deadline=5)
    assert await echo(gateway)
    shared = gateway._shared._shared
    assert shared is not None
    private_valkey.kill()
    await wait_until(lambda: shared.problem is not None)
    private_valkey.start()
    assert await echo(gateway), "the first question after that finds a new connection"


async def test_all_who_wait_for_one_attempt_to_connect_fail_with_it(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=0.5, failures=100)
    proxy.freeze()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(fails, gateway)
            # Also those who come while it is under way.
            await wait_until(lambda: gateway._shared._connecting.statistics().tasks_waiting == 9)
            for _ in range(10):
                group.start_soon(fails, gateway)
            await wait_until(lambda: gateway._shared._connecting.statistics().tasks_waiting == 19)
    assert proxy.connections_accepted == 1
    proxy.thaw()
    assert await echo(gateway)
    await wait_until(lambda: proxy.connections_open == 1, description="the one that failed is closed")


async def test_silence_counts_for_each_caller_and_a_refused_connection_once(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    async def all_fail(gateway: RedisGateway) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(fails, gateway)

    proxy.refuse()
    gateway = make_gateway(proxy.address, deadline=0.3, failures=3)
    await all_fail(gateway)
    assert gateway.circuit == "closed"
    proxy.accept()
    proxy.freeze()
    await all_fail(gateway)
    assert gateway.circuit == "open"
    accepted = proxy.connections_accepted
    await fails(gateway)
    assert proxy.connections_accepted == accepted, "it is left alone"


async def test_a_server_that_falls_silent_after_a_quiet_time_is_given_up_in_time(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=0.1, failures=100)
    assert await echo(gateway)
    shared = gateway._shared._shared
    assert shared is not None
    await wait_until(lambda: not shared._timer_is_set)
    proxy.freeze()
    with anyio.fail_after(5):
        await fails(gateway)


async def test_a_server_that_takes_no_writes_any_more_is_looked_for_anew(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer
) -> None:
    host, port = private_valkey.address.split(":")
    async with FaultProxy(host, int(port)) as proxy:
        gateway = make_gateway(proxy.address, deadline=5, failures=2)
        assert await gateway.call_multiplexed(("SET", "a", "1")) == [b"OK"]
        control = make_gateway(private_valkey.address, deadline=5)
        await control.call(("REPLICAOF", "127.0.0.1", 1))
        accepted = proxy.connections_accepted
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await gateway.call_multiplexed(("SET", "a", "2"))
        assert proxy.connections_accepted == accepted + 1, "the second one asked on a new connection"
        assert gateway.circuit == "open"
        await wait_until(lambda: proxy.connections_open == 0, description="those before are closed")


async def test_who_waits_on_a_connection_that_is_given_up_still_gets_an_answer(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    assert await echo(gateway)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(echo, gateway)
        await wait_until(lambda: waiting(gateway) == 1)
        given_up = gateway._shared._shared
        assert given_up is not None
        gateway._identity.replace_connections(given_up.peer)
        group.start_soon(echo, gateway)
        await wait_until(lambda: proxy.connections_accepted == 2)
        proxy.thaw()
    await wait_until(lambda: proxy.connections_open == 1)
    assert gateway._shared._shared is not given_up


async def test_what_cannot_be_sent_is_its_sender_s_alone(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    gateway = make_gateway(proxy.address)
    answers: list[int] = []

    async def ask(number: int) -> None:
        assert await gateway.call_multiplexed(("ECHO", number)) == [b"%d" % number]
        answers.append(number)

    async def fail_to_ask() -> None:
        with pytest.raises(UnicodeEncodeError):
            await gateway.call_multiplexed(("MULTI",), ("SET", "a", "\ud800"), ("EXEC",))

    assert await gateway.call_multiplexed() == []
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(ask, number)
            group.start_soon(fail_to_ask)
    assert sorted(answers) == [0, 1, 2, 3]


async def test_once_it_is_closed_there_is_no_connection(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    assert await echo(gateway)
    await gateway.aclose()
    await wait_until(lambda: proxy.connections_open == 0)
    late = make_gateway(proxy.address, deadline=20)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(fails, late)
        await wait_until(lambda: proxy.connections_open == 1)
        await late.aclose()
        proxy.thaw()
    await wait_until(lambda: proxy.connections_open == 0)


@pytest.mark.parametrize("natively", [True, False])
async def test_who_gives_up_while_it_connects_takes_nobody_along(
    make_gateway: MakeGateway, proxy: FaultProxy, natively: bool
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    proxy.freeze()
    scope, answers = anyio.CancelScope(), list[bool]()

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            answers.append(await echo(gateway))

    first = asyncio.create_task(ask(scope))
    await wait_until(lambda: proxy.connections_open == 1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask, anyio.CancelScope())
        await wait_until(lambda: gateway._shared._connecting.statistics().tasks_waiting == 3)
        if natively:
            first.cancel()
        else:
            scope.cancel()
        proxy.thaw()
    await asyncio.wait([first])
    assert answers == [True] * 3


async def test_a_refusal_is_its_sender_s_alone(
    make_gateway: MakeGateway, proxy: FaultProxy, redis_key_prefix: str, together: list[int]
) -> None:
    name = f"{redis_key_prefix}name"
    gateway = make_gateway(proxy.address)
    await gateway.call_multiplexed(("SET", name, "value", "PX", 60_000))
    together.clear()
    refused: list[str] = []

    async def refuse() -> None:
        with pytest.raises(ResponseError) as raised:
            await gateway.call_multiplexed(("MULTI",), ("LPUSH", name, "x"), ("EXEC",))
        refused.append(str(raised.value).partition(" ")[0])

    async def get() -> None:
        assert await gateway.call_multiplexed(("GET", name)) == [b"value"]

    async with anyio.create_task_group() as group:
        for what in [get] * 20 + [refuse] + [get] * 20:
            group.start_soon(what)
    assert refused == ["WRONGTYPE"]
    assert together == [43]
    assert gateway.circuit == "closed"


async def test_more_than_the_kernel_takes_at_a_time_arrives_in_full(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=20)
    texts = [bytes([number]) * 1_000_000 for number in range(1, 13)]

    async def ask(text: bytes) -> None:
        assert await gateway.call_multiplexed(("ECHO", text), ("ECHO", "x")) == [text, b"x"]

    assert await echo(gateway)
    proxy.freeze()
    async with anyio.create_task_group() as group:
        for text in texts:
            group.start_soon(ask, text)
        shared = gateway._shared._shared
        assert shared is not None
        await wait_until(lambda: shared._paused)
        group.start_soon(ask, b"late")
        await wait_until(lambda: waiting(gateway) == len(texts) + 1)
        proxy.thaw()


@asynccontextmanager
async def talkative(says: bytes) -> AsyncIterator[str]:
    """A server that answers every command with OK, and then sends a reply without a command."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    data = await stream.receive()
                    await stream.send(b"+OK\r\n" * data.count(b"*") + (says if b"ECHO" in data else b""))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
        group.start_soon(listener.serve, serve)
        yield f"127.0.0.1:{port}"
        group.cancel_scope.cancel()


@pytest.mark.parametrize("says", [b"+surplus\r\n", b"this is no Redis\r\n"])
async def test_a_connection_that_is_out_of_step_is_given_up(make_gateway: MakeGateway, says: bytes) -> None:
    async with talkative(says) as address:
        gateway = make_gateway(address)
        assert await gateway.call_multiplexed(("ECHO", "x")) == [b"OK"]
        shared = gateway._shared._shared
        assert shared is not None
        await wait_until(lambda: shared.problem is not None)
        assert await gateway.call_multiplexed(("GET", "x")) == [b"OK"], "on another connection"
