"""Connections are taken from the backlog as fast as they come, on the loops that the service and its tests run on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import pytest

from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import HOST
from bcs.http.acceptor import Accepted, Acceptor
from bcs.http.callers import Callers
from bcs.observability.telemetry import Telemetry
from tests.support.descriptors import no_more_files
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True}), "asyncio"], ids=["uvloop", "asyncio"]),
]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0), backlog=1024) as one:
        one.setblocking(False)
        yield one


class Greeter(asyncio.Protocol):
    """Greets each connection."""

    served = 0

    def connection_made(self, transport: Any) -> None:
        type(self).served += 1
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def greeter() -> type[Greeter]:
    return type("OwnGreeter", (Greeter,), {"served": 0})


def acceptor_of(listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], most: int = 1000) -> Acceptor:
    return Acceptor(listener, lambda _: protocol(), Callers(load_settings(), Telemetry(), most=most))


@asynccontextmanager
async def accepting(acceptor: Acceptor) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(acceptor.run)
        yield
        group.cancel_scope.cancel()
    acceptor.close()


@contextmanager
def callers(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """Some that are connected as far as the kernel is concerned."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(listener.getsockname(), 5)) for _ in range(count)]


async def test_hundreds_are_served_within_a_few_turns_of_the_loop(
    listener: socket.socket, greeter: type[Greeter]
) -> None:
    turns = 0
    with callers(listener, 200) as all_of_them:
        async with accepting(acceptor_of(listener, greeter)):
            while greeter.served < len(all_of_them):
                await asyncio.sleep(0)
                turns += 1
                assert turns < 50
        assert {caller.recv(10) for caller in all_of_them} == {b"hello"}


async def test_the_last_are_served_and_the_next_refused(listener: socket.socket, greeter: type[Greeter]) -> None:
    address = listener.getsockname()
    with callers(listener, 200) as all_of_them:
        acceptor = acceptor_of(listener, greeter)
        await acceptor.accept_remaining_and_close()
        acceptor.close()
        await wait_until(lambda: greeter.served == len(all_of_them))
        assert {caller.recv(10) for caller in all_of_them} == {b"hello"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


async def test_connections_from_before_the_rejection_are_still_served(
    listener: socket.socket, greeter: type[Greeter]
) -> None:
    acceptor = acceptor_of(listener, greeter)
    with callers(listener, 3) as before:
        acceptor.reject_new_connections()
        for caller in before:
            caller.send(b"hello to you")
        async with accepting(acceptor):
            await wait_until(lambda: greeter.served == len(before))
        assert {caller.recv(10) for caller in before} == {b"hello"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop them")
async def test_who_knocks_as_it_closes_is_refused_and_never_reset(
    listener: socket.socket, greeter: type[Greeter], monkeypatch: pytest.MonkeyPatch
) -> None:
    with callers(listener, 1) as before, socket.socket() as late:
        late.setblocking(False)
        acceptor = acceptor_of(listener, greeter)
        take = Acceptor._take

        def take_and_be_late(self: Acceptor, *, limited: bool) -> list[tuple[socket.socket, Accepted | None]]:
            taken = take(self, limited=limited)
            if not taken:  # the backlog is empty: the very last moment
                with suppress(BlockingIOError):
                    late.connect(address)
            return taken

        address = listener.getsockname()
        monkeypatch.setattr(Acceptor, "_take", take_and_be_late)
        acceptor.reject_new_connections()
        await acceptor.accept_remaining_and_close()
        acceptor.close()
        assert [caller.recv(10) for caller in before] == [b"hello"]
        await anyio.wait_writable(late)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


async def test_without_files_connections_are_accepted_by_those_that_were_kept(
    listener: socket.socket, greeter: type[Greeter]
) -> None:
    crowded: list[bool] = []

    def protocol(accepted: Accepted) -> Greeter:
        crowded.append(accepted.crowded is not None)
        return greeter()

    acceptor = Acceptor(listener, protocol, Callers(load_settings(), Telemetry(), most=1000))
    with callers(listener, 30) as some, no_more_files() as files:
        async with accepting(acceptor):
            await wait_until(lambda: greeter.served == len(some))
            assert all(crowded)
            for file in files:
                os.close(file)
            files.clear()
        assert {caller.recv(10) for caller in some} == {b"hello"}


class Unlucky(socket.socket):
    """Raises once, like Linux, the network error of a new connection."""

    unlucky = True

    def accept(self) -> tuple[socket.socket, Any]:
        if self.unlucky:
            self.unlucky = False
            raise OSError(errno.EPROTO, "Protocol error")
        return super().accept()


async def test_a_network_error_of_one_connection_ends_nothing(greeter: type[Greeter]) -> None:
    with Unlucky() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        listener.setblocking(False)
        with callers(listener, 2) as some:
            async with accepting(acceptor_of(listener, greeter)):
                await wait_until(lambda: greeter.served == len(some))
            assert {caller.recv(10) for caller in some} == {b"hello"}
            assert not listener.unlucky


class Answerer(asyncio.Protocol):
    """Greets each caller that sends bytes first."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"hello")
        self.transport.close()


async def test_what_was_taken_is_served_though_the_acceptor_is_killed(listener: socket.socket) -> None:
    for turns in range(8):
        with callers(listener, 5) as some:
            async with accepting(acceptor_of(listener, Answerer)):
                for _ in range(turns):
                    await asyncio.sleep(0)
            # Whoever was not taken waits for the next one.
            async with accepting(acceptor_of(listener, Answerer)):
                for caller in some:
                    caller.send(b"hello to you")
                assert {await anyio.to_thread.run_sync(caller.recv, 10) for caller in some} == {b"hello"}
