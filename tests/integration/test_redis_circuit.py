"""The circuit breaker in front of Redis, and answers of Redis that pass like an outage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import anyio
import pytest
from redis.exceptions import ResponseError

from bcs.domain.errors import CommitConflict, StoreUnavailable
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.state import delta_of
from bcs.embedded import EmbeddedServer
from bcs.store.committing import CommitPolicy
from bcs.store.redis_gateway import RedisGateway
from bcs.store.redis_state import RedisStateStore
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NEVER = 10**6
Make = Callable[..., RedisGateway]
DELTA = delta_of([EssaysRegistered(("a",), 1, 0), EssayPhaseEnded("nlp", "a", Outcome.COMPLETED, 1)])


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    target = urlsplit(redis_url)
    async with FaultProxy(target.hostname or "localhost", target.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[RedisGateway] = []

    def make(
        address: str, *, deadline: float = 0.3, failures: int = NEVER, open_seconds: float = 60, connections: int = 4
    ) -> RedisGateway:
        made.append(
            RedisGateway(
                f"redis://{address}/0",
                max_connections=connections,
                deadline_seconds=deadline,
                breaker_failures=failures,
                breaker_open_seconds=open_seconds,
            )
        )
        return made[-1]

    yield make
    for gateway in made:
        await gateway.aclose()


async def echo(gateway: RedisGateway, text: bytes = b"hello") -> bool:
    return await gateway.call(("ECHO", text)) == [text]


async def fails(gateway: RedisGateway, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            await echo(gateway)


async def until_it_answers(gateway: RedisGateway) -> None:
    await wait_until(lambda: echo(gateway), ignoring=(StoreUnavailable,))


async def test_the_circuit_opens_refuses_at_once_half_opens_and_closes(make: Make, proxy: FaultProxy) -> None:
    gateway = make(proxy.address, failures=3, open_seconds=0.2, deadline=2)
    assert await echo(gateway)
    gateway.ensure_reachable()
    proxy.refuse()
    await proxy.cut()
    await fails(gateway, 2)
    assert gateway.circuit == "closed"
    gateway.ensure_reachable()
    await fails(gateway)
    assert gateway.circuit == "opened"

    proxy.accept()
    accepted = proxy.connections_accepted
    await fails(gateway, 2)  # although it would answer
    with pytest.raises(StoreUnavailable):
        gateway.ensure_reachable()
    assert proxy.connections_accepted == accepted
    await gateway.ping()  # asks all the same
    assert gateway.circuit == "opened"

    proxy.freeze()
    await proxy.cut()
    async with anyio.create_task_group() as group:
        group.start_soon(until_it_answers, gateway)
        await wait_until(lambda: gateway.circuit == "half-opened")
        gateway.ensure_reachable()
        proxy.thaw()
    assert gateway.circuit == "closed"
    gateway.ensure_reachable()


async def test_one_failure_opens_a_half_open_circuit_again(make: Make, proxy: FaultProxy) -> None:
    proxy.refuse()
    gateway = make(proxy.address, failures=3, open_seconds=0.1, deadline=0.1)
    await fails(gateway, 3)
    proxy.accept()
    proxy.freeze()
    accepted = proxy.connections_accepted

    async def tried_again() -> bool:
        await fails(gateway)
        return proxy.connections_accepted > accepted

    await wait_until(tried_again)
    assert gateway.circuit == "opened"


async def test_failures_must_come_in_a_row_to_open_the_circuit(make: Make, proxy: FaultProxy) -> None:
    gateway = make(proxy.address, failures=3)
    for _ in range(4):
        proxy.refuse()
        await proxy.cut()
        await fails(gateway, 2)
        proxy.accept()
        assert await echo(gateway)
    assert gateway.circuit == "closed"


async def fail_inside_a_transaction(gateway: RedisGateway) -> None:
    async with gateway.session() as session:
        await session.call(("MULTI",))
        raise ZeroDivisionError


async def test_refused_commands_and_callers_own_errors_are_no_failures_of_redis(make: Make, proxy: FaultProxy) -> None:
    gateway = make(proxy.address, failures=2)
    for _ in range(5):
        with pytest.raises(ResponseError):
            await gateway.call(("NO SUCH COMMAND",), ("ECHO", "x"))
        with pytest.raises(ZeroDivisionError):
            await fail_inside_a_transaction(gateway)
        assert await echo(gateway)
    assert gateway.circuit == "closed"


class FallbackOnly(RedisStateStore):
    """Loses every optimistic attempt, so that every commit goes by the script."""

    async def _execute(self, *_: object) -> bool:
        raise CommitConflict("b")


async def make_replica(control: RedisGateway) -> None:
    await control.call(("REPLICAOF", "127.0.0.1", 1))


async def make_full(control: RedisGateway) -> None:
    await control.call(("CONFIG", "SET", "maxmemory", 1))


async def make_locked(control: RedisGateway) -> None:
    await control.call(
        ("CONFIG", "SET", "requirepass", "secret"), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    )


@pytest.mark.parametrize(
    ("spoil", "fallback"),
    [(make_replica, False), (make_replica, True), (make_full, False), (make_locked, False), (make_locked, True)],
)
async def test_a_server_that_refuses_writes_for_now_is_out_of_reach_and_not_corrupted(
    make: Make, private_valkey: EmbeddedServer, spoil: Callable[[RedisGateway], Awaitable[None]], fallback: bool
) -> None:
    gateway = make(private_valkey.address, deadline=5, failures=2)
    kind = FallbackOnly if fallback else RedisStateStore
    store = kind(gateway, key_prefix="t:", ttl_seconds=60, phases=("nlp",), policy=CommitPolicy(attempts=1))
    await store.commit("b", DELTA)
    await spoil(make(private_valkey.address, deadline=5))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.commit("b", DELTA)


async def test_a_server_that_is_busy_with_a_script_is_out_of_reach(make: Make, private_valkey: EmbeddedServer) -> None:
    control, gateway = make(private_valkey.address, deadline=5), make(private_valkey.address, deadline=5)
    await control.call(("CONFIG", "SET", "busy-reply-threshold", 1))
    async with anyio.create_task_group() as group:

        async def keep_busy() -> None:
            with pytest.raises(ResponseError):
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
