"""Signals at any moment: a service stops in order, also before it has started, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bcs.devtools.servers.embedded import free_port
from tests.e2e.processes import at_a_terminal, servers_in
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("signals_as_at_a_terminal"),
]

BCS = [sys.executable, "-m", "bcs"]
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
NOWHERE = "127.0.0.1:1"
MEMORY = {"BCS_USE_MOCK_REPOSITORY": "true", "BCS_HTTP_HOST": "127.0.0.1", "BCS_KAFKA_BOOTSTRAP_SERVERS": NOWHERE}


@pytest.fixture
def signals_as_at_a_terminal() -> Iterator[None]:
    """Restores default signal handling, because processes inherit ignored signals."""
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def bcs(directory: Path, *arguments: str, **environment: object) -> Iterator[BcsProcess]:
    """``python -m bcs``, which is what the installed command does."""
    with BcsProcess(directory, *arguments, command=BCS, **environment) as process:
        yield process


def catches_all(process_id: int) -> bool:
    """Whether a process has handlers for all these signals."""
    status = Path(f"/proc/{process_id}/status").read_text()
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and all(int(found[1], 16) >> (number - 1) & 1 for number in STOPS)


def has_loaded(process_id: int, library: str) -> bool:
    """Whether a process has imported an extension module."""
    return library in Path(f"/proc/{process_id}/maps").read_text()


# --- bcs serve -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.release) for number in STOPS[1:])]
)
async def test_a_signal_while_it_imports_ends_the_service_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with bcs(tmp_path, "serve", BCS_HTTP_PORT=free_port(), **MEMORY) as process:
        await wait_until(lambda: catches_all(process.process.pid))
        assert not has_loaded(process.process.pid, "uvloop"), "the handler is there before most is imported"
        process.signal(number)
        assert await process.ended() == 0
    assert process.log.read_text() == "", "it has not begun"


@pytest.mark.release
@pytest.mark.parametrize("number", STOPS)
async def test_a_signal_at_any_moment_of_the_start_ends_the_service_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    moments: dict[str, Callable[[BcsProcess], bool]] = {
        "imports": lambda process: has_loaded(process.process.pid, "uvloop"),
        "listens": lambda process: answers_knocks(int(process.environment["BCS_HTTP_PORT"])),
        "has started": lambda process: "started" in process.log.read_text(),
    }
    for name, moment in moments.items():
        with bcs(tmp_path / name, "serve", BCS_HTTP_PORT=free_port(), **MEMORY) as process:
            await wait_until(lambda moment=moment, process=process: moment(process))  # type: ignore[misc]
            process.signal(number)
            assert await process.ended() == 0, name
        assert "Traceback" not in process.log.read_text(), name


def answers_knocks(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.release
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
async def test_as_process_1_of_a_container_it_hears_an_early_signal(tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", *BCS]
    with BcsProcess(tmp_path, "serve", command=command, BCS_HTTP_PORT=free_port(), **MEMORY) as process:
        [inside] = await wait_until(lambda: process.children())
        await wait_until(lambda: catches_all(inside))
        os.kill(inside, signal.SIGTERM)
        assert await process.ended() == 0


async def test_sighup_stops_a_service_in_order(tmp_path: Path) -> None:
    with serve(tmp_path, f"redis://{NOWHERE}", NOWHERE, forked=True, **MEMORY) as process:
        await process.answers()
        process.signal(signal.SIGHUP)
        assert await process.ended() == 0
    assert re.search(r"stopping .*signal=SIGHUP", process.log.read_text())


@pytest.mark.release
async def test_a_service_that_is_to_survive_its_terminal_does(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it
    with bcs(tmp_path, "serve", BCS_HTTP_PORT=free_port(), BCS_SHUTDOWN_DRAIN_SECONDS=0, **MEMORY) as process:
        await process.answers()
        process.signal(signal.SIGHUP)
        async with Orchestrator(process.base) as orchestrator:
            assert (await orchestrator.get("/readyz")).status == 200
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert "SIGHUP" not in process.log.read_text()


async def test_a_signal_ends_a_command_with_the_code_of_the_signal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with BcsProcess(tmp_path, "dlq", "list", forked=True, BCS_KAFKA_BOOTSTRAP_SERVERS=address) as process:
            connection, _ = await wait_until(silent.accept, ignoring=(BlockingIOError,))
            with connection:
                process.signal(signal.SIGTERM)
                assert await process.ended() == 128 + signal.SIGTERM
    assert "Traceback" not in process.log.read_text()


# --- bcs dev ---------------------------------------------------------------------------------------------------------

OF_DEV: dict[str, Callable[[Any, Path], object]] = {
    "imports": lambda process, _: catches_all(process.process.pid),
    "begins": lambda _, home: list(home.glob("bcs-dev-*")),
    "starts PostgreSQL": lambda _, home: [*home.glob("bcs-*/**/unfinished-*")],
    "has servers": lambda _, home: [*home.glob("bcs-*/**/postmaster.pid")],
    "has started": lambda process, _: "BCS is running" in process.output.read_text(),
}


@pytest.mark.release
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("moment", OF_DEV)
async def test_dev_leaves_nothing_whenever_it_is_stopped(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with bcs(tmp_path / "dev", "dev", BCS_HTTP_PORT=free_port(), TMPDIR=home) as process:
        await wait_until(lambda: OF_DEV[moment](process, home), 40, description=moment)
        process.signal(number)
        assert await process.ended() == 0
    assert "Traceback" not in process.log.read_text()
    assert servers_in(home) == []
    assert list(home.iterdir()) == []


@pytest.mark.release
@pytest.mark.parametrize("moment", ["starts PostgreSQL", "has started"])
async def test_dev_leaves_nothing_when_its_terminal_is_closed(tmp_path: Path, moment: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with at_a_terminal("dev", "--demo", BCS_HTTP_PORT=free_port(), TMPDIR=home) as (process, terminal):
        read = bytearray()

        def has_started() -> bool:
            with suppress(BlockingIOError):
                read.extend(os.read(terminal, 65536))
            return b"BCS is running" in read

        await wait_until(has_started if moment == "has started" else lambda: OF_DEV[moment](process, home))
        os.close(terminal)
        await wait_until(lambda: process.poll() is not None)
        assert process.wait() == 0
    assert servers_in(home) == []
    assert list(home.iterdir()) == []
