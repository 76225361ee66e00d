"""Good callers keep their answers while a crowd attacks: slow heads, slow bodies, idle connections, unread answers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import anyio
import pytest
from aiohttp import ClientError

from bcs.devtools.servers.embedded import free_port
from tests.support.descriptors import no_more_files
from tests.support.service import DEFINE, Orchestrator, RunningService, running_service, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

# Without the share, the attackers would take all connections.
MOST, SHARE, ATTACKERS = 40, 8, 60
GOOD_CALLERS = 4
CALLS = 10
BETWEEN_CALLS_SECONDS = 0.005
DRIP_SECONDS = 0.05
SLOW_SECONDS = 0.4
# Each connection without a file may end two.
BEFORE = ATTACKERS * 3 // 4
CROWD = 600
LONG_SECONDS = 5.0
KEPT = 0.95
ATTACKERS_ADDRESS = "127.0.0.2"
NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1", "shutdown_seconds": 2.0}
# So short that each attacker is dropped, and comes again, several times in a test.
LIMITS = {"http_max_connections": MOST, "http_max_connections_per_address": SHARE}
SHORT = {"http_idle_seconds": 0.3, "http_head_seconds": 0.3, "http_body_seconds": 0.3, "http_send_seconds": 0.3}

GOOD = json.dumps({"batch_id": "good", "requested_pipeline": "ai_feedback", "correlation_id": "c"}).encode()
DEFINE_GOOD = (
    f"POST {DEFINE} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {len(GOOD)}\r\n\r\n"
).encode() + GOOD

Address = tuple[str, int]
Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def dripping(writer: asyncio.StreamWriter, first: bytes, more: bytes) -> None:
    writer.write(first)
    while not writer.is_closing():
        # The attack: slow enough to take long, quick enough to look alive.
        await asyncio.sleep(DRIP_SECONDS)
        writer.write(more)
        await writer.drain()


async def slow_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await dripping(writer, b"GET /readyz HTTP/1.1\r\nX: ", b"x")


async def slow_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = f"POST {DEFINE} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    await dripping(writer, head.encode(), b" " * 100)


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: bcs\r\n\r\n")
    await reader.read()


async def unread(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await dripping(writer, b"", b"GET /metrics HTTP/1.1\r\nHost: bcs\r\n\r\n" * 3)


ATTACKS = (slow_head, slow_body, silent, idle, unread)


async def attack_again_and_again(address: Address, attack: Attack, source: str, pause_seconds: float) -> None:
    while True:
        # A small buffer, so that the service notices soon that nobody reads.
        caller = socket.socket()
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)
        caller.bind((source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(caller, address)
            reader, writer = await asyncio.open_connection(sock=caller)
            try:
                await attack(reader, writer)
            finally:
                writer.transport.abort()
        except OSError:
            pass
        finally:
            caller.close()
        # The attack comes again after so long.
        await asyncio.sleep(pause_seconds)


@asynccontextmanager
async def under_attack(
    address: Address, attack: Attack, attackers: int, source: str, pause_seconds: float = DRIP_SECONDS
) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        for _ in range(attackers):
            group.start_soon(attack_again_and_again, address, attack, source, pause_seconds)
        yield
        group.cancel_scope.cancel()


async def good_calls(base: str, *, goes_on: Callable[[int], bool]) -> Counter[int]:
    """The statuses of the answers; 0 where there was none. Every other caller keeps its connection."""
    statuses: Counter[int] = Counter()

    async def call(keep_alive: bool) -> None:
        async with Orchestrator(base, keep_alive=keep_alive) as orchestrator:
            number = 0
            while goes_on(number):
                status = 0
                with suppress(ClientError, TimeoutError):
                    with anyio.fail_after(5):
                        status = (await orchestrator.define("good")).status
                statuses[status] += 1
                number += 1
                # Callers who never pause would measure the machine.
                await asyncio.sleep(BETWEEN_CALLS_SECONDS)

    async with anyio.create_task_group() as group:
        for number in range(GOOD_CALLERS):
            group.start_soon(call, bool(number % 2))
    return statuses


def assert_kept(statuses: Counter[int]) -> None:
    assert statuses[200] >= KEPT * statuses.total() > 0, statuses


@pytest.mark.parametrize("attack", ATTACKS)
async def test_good_callers_keep_their_answers_while_another_address_attacks(attack: Attack) -> None:
    async with running_service(**NOWHERE, **SHORT, **LIMITS) as service, AsyncExitStack() as stack:
        # Accepted connections inherit it, so that an answer that nobody reads does not fit into the kernel's buffer.
        service.service.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        attacking = under_attack(service.service.address, attack, ATTACKERS, ATTACKERS_ADDRESS)
        await stack.enter_async_context(attacking)
        await wait_until(lambda: connections(service) >= SHARE)
        if attack is unread:
            await wait_until(lambda: sample(service, "bcs_http_held_bytes") > 0)
        statuses = await good_calls(service.base, goes_on=lambda number: number < CALLS)
    assert_kept(statuses)


def connections(service: RunningService) -> float:
    return sample(service, "bcs_http_connections")


def sample(service: RunningService, name: str) -> float:
    return service.service.telemetry.registry.get_sample_value(name) or 0


async def test_good_callers_keep_their_connections_while_silent_ones_use_up_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The good callers are connected before. Each further silent caller costs an older silent one its connection."""
    monkeypatch.setattr("bcs.http.callers._SLOW_SECONDS", SLOW_SECONDS)
    async with running_service(**NOWHERE) as service, AsyncExitStack() as stack:
        address = service.service.address
        silent_callers = [stack.enter_context(socket.socket()) for _ in range(ATTACKERS)]
        for caller in silent_callers[:BEFORE]:
            caller.connect(address)
        await wait_until(lambda: connections(service) == BEFORE)
        # Only who has been silent for so long may lose a connection, and nothing tells when that is.
        await asyncio.sleep(SLOW_SECONDS * 1.5)
        good = [await asyncio.open_connection(*address) for _ in range(GOOD_CALLERS)]
        await wait_until(lambda: connections(service) == BEFORE + GOOD_CALLERS)
        statuses: Counter[int] = Counter()
        with no_more_files():
            for caller in silent_callers[BEFORE:]:
                caller.connect(address)
                for reader, writer in good:
                    writer.write(DEFINE_GOOD)
                    with anyio.fail_after(30):
                        head = await reader.readuntil(b"\r\n\r\n")
                        await reader.readuntil(b"}\n")
                    statuses[int(head.split()[1])] += 1
        for _, writer in good:
            writer.close()
        assert service.service.telemetry.registry.get_sample_value(
            "bcs_http_callers_dropped_total", {"waited_for": "head", "reason": "no_room"}
        )
    assert_kept(statuses)


@pytest.mark.release
@pytest.mark.serial
@pytest.mark.parametrize("share", [{}, {"BCS_HTTP_MAX_CONNECTIONS_PER_ADDRESS": 100}], ids=["all have room", "share"])
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack is not unread])
async def test_six_hundred_attackers_harm_no_good_caller(tmp_path: Path, attack: Attack, share: dict[str, int]) -> None:
    """Answers that are not read: see `test_the_largest_batch_delays_nobody_and_slow_readers_hold_no_memory`."""
    nowhere = f"127.0.0.1:{free_port()}"
    with serve(tmp_path, f"redis://{nowhere}", nowhere, BCS_USE_MOCK_REPOSITORY=True, forked=False, **share) as process:
        await process.answers()
        address = ("127.0.0.1", int(process.environment["BCS_HTTP_PORT"]))
        attackers = min([*share.values(), CROWD])
        async with (
            # Pauses, because this process plays all attackers and the good callers, too.
            under_attack(address, attack, CROWD, ATTACKERS_ADDRESS, pause_seconds=1.0),
            Orchestrator(process.base) as orchestrator,
        ):

            async def is_under_attack() -> bool:
                return (await orchestrator.metric("bcs_http_connections") or 0) > 0.9 * attackers

            await wait_until(is_under_attack)
            until = monotonic() + LONG_SECONDS
            statuses = await good_calls(process.base, goes_on=lambda _: monotonic() < until)
            await wait_until(is_under_attack)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert_kept(statuses)
