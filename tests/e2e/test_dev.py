"""``bcs`` on a developer's machine: stopped half way, started twice, and given settings that can't be."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from bcs.devtools.servers.embedded import free_port
from tests.e2e.processes import at_a_terminal, children_of, servers_in
from tests.support.commands import bcs
from tests.support.ports import held_port
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux_only
@pytest.mark.release
async def test_an_interrupted_demo_ends_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    port, file = held_port(), tmp_path / "variables"
    arguments = ("dev", "--demo", "--env-file", str(file))
    with BcsProcess(tmp_path / "dev", *arguments, BCS_HTTP_PORT=port, TMPDIR=home) as process:
        await wait_until(lambda: "1. Batch" in process.output.read_text(), 40, description=process.log.read_text())
        assert len(process.children()) == 3, "one Redis, one Kafka and one PostgreSQL"
        assert len(servers_in(home)) > 3, "PostgreSQL has more processes than one"
        written = file.read_text().splitlines()
        assert {"BCS_KAFKA_ENABLE_IDEMPOTENCE=false", f"BCS_HTTP_PORT={port}"} < set(written)
        variables = dict(line.split("=", 1) for line in written)
        for command in (("actors",), ("dlq", "replay", "--all"), ("dlq", "purge", "--yes")):
            assert (await bcs(*command, **variables)).exit_code == 0
        process.signal(signal.SIGINT)
        assert await process.ended() == 0
    assert "That was the story" not in process.output.read_text()
    assert "Traceback" not in process.log.read_text()
    assert servers_in(home) == []
    assert list(home.iterdir()) == []
    assert not file.exists()


@linux_only
@pytest.mark.release
async def test_r_at_a_terminal_restarts_the_service_and_leaves_the_servers(tmp_path: Path) -> None:
    pipelines, log = tmp_path / "pipelines.yaml", tmp_path / "log"
    settings = {"BCS_PIPELINE_CONFIG_PATH": pipelines, "BCS_HTTP_PORT": held_port()}
    pipelines.write_text("phases: [{name: before}]")
    with at_a_terminal("dev", "--log-file", str(log), **settings) as (process, terminal):
        shown = bytearray()

        def shows(text: str) -> bool:
            with suppress(BlockingIOError):
                shown.extend(os.read(terminal, 65536))
            return text.encode() in shown

        await wait_until(lambda: shows("r restarts the service"))
        servers = children_of(process.pid)
        assert len(servers) == 3
        pipelines.write_text("phases: [")
        os.write(terminal, b"r")
        await wait_until(lambda: shows("The pipelines stay as they were") and shows("BCS is running again"))
        pipelines.write_text("phases: [{name: after}]")
        os.write(terminal, b"xr")
        await wait_until(lambda: shown.count(b"BCS is running again") == 2 or shows("no such text"))
        assert children_of(process.pid) == servers
        async with Orchestrator(f"http://127.0.0.1:{settings['BCS_HTTP_PORT']}") as caller:
            assert (await caller.define("b", "after")).json["final_pipeline"] == ["after"]
        os.write(terminal, b"\x03")
        await wait_until(lambda: process.poll() is not None or shows("no such text"))
        assert process.wait() == 0
    assert log.read_text().count(" started ") == 3


@linux_only
async def test_dev_on_a_taken_port_says_so_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with BcsProcess(tmp_path / "dev", "dev", BCS_HTTP_PORT=port, TMPDIR=home) as process:
            assert await process.ended() == 1
    [line] = process.log.read_text().splitlines()
    assert "BCS_HTTP_PORT" in line
    assert str(port) in line
    assert servers_in(home) == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BCS_KAFKA_BOOTSTRAP_SERVERS", "foo:bar"),
        pytest.param("BCS_PIPELINE_CONFIG_PATH", "/nonexistent", marks=pytest.mark.release),
    ],
)
async def test_a_setting_that_cannot_be_is_named(tmp_path: Path, variable: str, value: str) -> None:
    environment = {"BCS_USE_MOCK_REPOSITORY": "true", "BCS_HTTP_HOST": "127.0.0.1", "BCS_HTTP_PORT": held_port()}
    with BcsProcess(tmp_path, "serve", **environment, **{variable: value}) as process:
        assert await process.ended() == 2
    assert variable in process.log.read_text()
    assert "Traceback" not in process.log.read_text()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.release
@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
@pytest.mark.parametrize("host", ["::", "::1"])
async def test_healthcheck_finds_a_service_on_ipv6(tmp_path: Path, host: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    settings = {"BCS_USE_MOCK_REPOSITORY": "true", "BCS_SHUTDOWN_SECONDS": 2, "BCS_HTTP_HOST": host}
    with serve(tmp_path / "serve", f"redis://{nowhere}", nowhere, **settings, forked=False) as process:
        port = process.environment["BCS_HTTP_PORT"]

        async def answers() -> bool:
            assert process.process.poll() is None, process.log.read_text()
            async with Orchestrator(f"http://[::1]:{port}") as caller:
                return (await caller.get("/healthz")).status == 200

        await wait_until(answers, ignoring=(aiohttp.ClientError,))
        environment = {"BCS_HTTP_HOST": host, "BCS_HTTP_PORT": port}
        with BcsProcess(tmp_path / "probe", "healthcheck", **environment) as probe:
            assert await probe.ended() == 0
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    with BcsProcess(tmp_path / "probe", "healthcheck", **environment) as probe:
        assert await probe.ended() == 1, "it can also say no"
