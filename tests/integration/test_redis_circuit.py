"""The circuit breaker in front of Redis, and answers of Redis that pass like an outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.committing import CommitPolicy
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import (
    DELTA,
    ByTransaction,
    MakeGateway,
    MakeStore,
    completed,
    echo,
    fails,
    until_it_answers,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_the_circuit_opens_refuses_at_once_half_opens_and_closes(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=3, open_seconds=0.2, deadline=2)
    assert await echo(gateway)
    gateway.ensure_reachable()
    proxy.refuse()
    await proxy.cut()
    await fails(gateway, 2)
    assert gateway.circuit == "closed"
    gateway.ensure_reachable()
    await fails(gateway)
    assert gateway.circuit == "open"

    proxy.accept()
    accepted = proxy.connections_accepted
    await fails(gateway, 2)  # although it would answer
    with pytest.raises(StoreUnavailable):
        gateway.ensure_reachable()
    assert proxy.connections_accepted == accepted
    await gateway.ping()  # asks all the same
    assert gateway.circuit == "open"

    proxy.freeze()
    await proxy.cut()
    async with anyio.create_task_group() as group:
        group.start_soon(until_it_answers, gateway)
        await wait_until(lambda: gateway.circuit == "half_open")
        gateway.ensure_reachable()
        proxy.thaw()
    assert gateway.circuit == "closed"
    gateway.ensure_reachable()


async def test_one_failure_opens_a_half_open_circuit_again(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    proxy.refuse()
    gateway = make_gateway(proxy.address, failures=3, open_seconds=0.1, deadline=0.1)
    await fails(gateway, 3)
    proxy.accept()
    proxy.freeze()
    accepted = proxy.connections_accepted

    async def tried_again() -> bool:
        await fails(gateway)
        return proxy.connections_accepted > accepted

    await wait_until(tried_again)
    assert gateway.circuit == "open"


async def open_the_circuit(gateway: RedisGateway, proxy: FaultProxy) -> None:
    """By one failure; then the proxy lets connections through again."""
    proxy.refuse()
    await fails(gateway)
    assert gateway.circuit == "open"
    proxy.accept()


def set_the_wall_clock(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + hours * 3600)


async def test_a_wall_clock_that_is_set_back_does_not_lengthen_the_pause(
    make_gateway: MakeGateway, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = 0.3
    gateway = make_gateway(proxy.address, failures=1, open_seconds=pause)
    began = time.monotonic()
    await open_the_circuit(gateway, proxy)
    set_the_wall_clock(monkeypatch, hours=-1)
    await until_it_answers(gateway)
    assert time.monotonic() - began >= pause, "it was a pause"
    assert gateway.circuit == "closed"


async def test_a_wall_clock_that_is_set_forward_does_not_shorten_the_pause(
    make_gateway: MakeGateway, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_gateway(proxy.address, failures=1, open_seconds=60)
    await open_the_circuit(gateway, proxy)
    accepted = proxy.connections_accepted
    set_the_wall_clock(monkeypatch, hours=1)
    await fails(gateway, 2)
    assert proxy.connections_accepted == accepted


async def test_failures_must_come_in_a_row_to_open_the_circuit(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    gateway = make_gateway(proxy.address, failures=3)
    for _ in range(4):
        proxy.refuse()
        await proxy.cut()
        await fails(gateway, 2)
        proxy.accept()
        assert await echo(gateway)
    assert gateway.circuit == "closed"


async def fail_once(gateway: RedisGateway, proxy: FaultProxy) -> None:
    proxy.refuse()
    await fails(gateway)
    assert gateway.circuit == "open"
    proxy.accept()


async def test_an_answer_within_a_transaction_ends_the_pause(make_gateway: MakeGateway, proxy: FaultProxy) -> None:
    gateway = make_gateway(proxy.address, failures=1, open_seconds=60, deadline=20)
    async with gateway.session() as session:
        # Under way when the circuit opens, and answered afterwards.
        await fail_once(gateway, proxy)
        assert await session.call(("ECHO", "x")) == [b"x"]
    assert gateway.circuit == "closed"
    assert await echo(gateway)


async def test_an_answer_on_the_connection_in_common_ends_the_pause(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=1, open_seconds=60, deadline=20)
    assert await gateway.call_multiplexed(("ECHO", "x")) == [b"x"]
    line = gateway._shared._shared
    assert line is not None
    proxy.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(gateway.call_multiplexed, ("ECHO", "x"))
        await wait_until(lambda: line._pending)
        await fail_once(gateway, proxy)
        proxy.thaw()
    assert gateway.circuit == "closed"
    assert await echo(gateway)


async def test_a_failure_of_another_store_does_not_open_the_circuit(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=1, deadline=20)

    async def fail_over_another() -> None:
        async with gateway.session() as session:
            await session.call(("ECHO", "x"))
            raise StoreUnavailable("postgresql", "the test says so")

    with pytest.raises(StoreUnavailable):
        await fail_over_another()
    assert gateway.circuit == "closed"


async def test_a_late_failure_does_not_lengthen_the_pause(
    make_gateway: MakeGateway, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr("circuitbreaker.monotonic", lambda: seconds)
    gateway = make_gateway(proxy.address, failures=1, open_seconds=60, deadline=20)

    async def fail_late() -> None:
        nonlocal seconds
        async with gateway.session() as session:
            # In progress when the circuit opens, and cut off shortly before the end of the pause.
            await fail_once(gateway, proxy)
            seconds = 59
            await proxy.cut()
            await session.call(("ECHO", "x"))

    with pytest.raises(StoreUnavailable):
        await fail_late()
    assert gateway.circuit == "open"
    seconds = 60
    assert gateway.circuit == "half_open"


async def test_a_caller_that_is_cancelled_does_not_close_the_circuit(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=1, open_seconds=0.05, deadline=20)
    await fail_once(gateway, proxy)
    proxy.freeze()
    accepted = proxy.connections_accepted

    async def ask() -> None:
        await wait_until(lambda: echo(gateway), ignoring=(StoreUnavailable,))

    task = asyncio.create_task(ask())
    await wait_until(lambda: proxy.connections_accepted > accepted)
    task.cancel()
    await asyncio.wait([task])
    assert gateway.circuit == "half_open"


async def fail_inside_a_transaction(gateway: RedisGateway) -> None:
    async with gateway.session() as session:
        await session.call(("MULTI",))
        raise ZeroDivisionError


async def test_refused_commands_and_callers_own_errors_are_no_failures_of_redis(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, failures=2)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await gateway.call(("NO SUCH COMMAND",), ("ECHO", "x"))
        with pytest.raises(ZeroDivisionError):
            await fail_inside_a_transaction(gateway)
        assert await echo(gateway)
    assert gateway.circuit == "closed"


async def make_replica(control: RedisGateway) -> None:
    await control.call(("REPLICAOF", "127.0.0.1", 1))


async def make_full(control: RedisGateway) -> None:
    await control.call(("CONFIG", "SET", "maxmemory", 1))


async def make_locked(control: RedisGateway) -> None:
    await control.call(
        ("CONFIG", "SET", "requirepass", "secret"), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    )


@pytest.mark.parametrize(
    ("spoil", "by_transaction"),
    [(make_replica, False), (make_replica, True), (make_full, False), (make_locked, False), (make_locked, True)],
)
async def test_a_server_that_refuses_writes_is_unavailable_and_not_corrupt(
    make_gateway: MakeGateway,
    private_valkey: EmbeddedServer,
    in_redis: MakeStore,
    spoil: Callable[[RedisGateway], Awaitable[None]],
    by_transaction: bool,
) -> None:
    gateway = make_gateway(private_valkey.address, deadline=5, failures=2)
    kind = ByTransaction if by_transaction else RedisStateStore
    store = in_redis(gateway, CommitPolicy(attempts=1), kind=kind)
    await store.commit("b", DELTA)
    await spoil(make_gateway(private_valkey.address, deadline=5))
    for at_us in range(2):
        with pytest.raises(StoreUnavailable):
            await store.commit("b", delta_of([completed("another", at_us)]))


async def test_a_server_that_is_busy_with_a_script_is_out_of_reach(
    make_gateway: MakeGateway, private_valkey: EmbeddedServer
) -> None:
    control, gateway = (
        make_gateway(private_valkey.address, deadline=5),
        make_gateway(private_valkey.address, deadline=5),
    )
    await control.call(("CONFIG", "SET", "busy-reply-threshold", 1))
    async with anyio.create_task_group() as group:

        async def keep_busy() -> None:
            with pytest.raises(StoreUnavailable):
                await control.call(("EVAL", "while true do end", 0))

        group.start_soon(keep_busy)

        async def refused() -> bool:
            try:
                await gateway.call(("GET", "x"))
            except StoreUnavailable as error:
                return "BUSY" in error.cause
            return False

        await wait_until(refused)
        await control.call(("SCRIPT", "KILL"))
    assert await echo(gateway)
