"""``bcs`` as its users run it: a process with environment variables, signals, an exit code and two outputs."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from bcs import __version__
from bcs.devtools.servers.embedded import free_port
from bcs.wire import topics
from tests.support.commands import bcs
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, uuids, values
from tests.support.ports import held_port
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BUDGET_SECONDS = 8.0
BROKEN = 50


@pytest.fixture
async def platform(kafka_bootstrap_servers: str) -> AsyncIterator[Platform]:
    async with Platform(kafka_bootstrap_servers) as platform:
        yield platform


@pytest.fixture
def prefix(unique_name: Callable[[str], str]) -> str:
    return unique_name("batch")


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (
            {"BCS_HTTP_PORT": "http", "BCS_ENVIRONMENT": "live", "BCS_REDIS_TTL_SECONDS": "-1"},
            ["BCS_HTTP_PORT", "BCS_ENVIRONMENT", "BCS_REDIS_TTL_SECONDS"],
        ),
        # A process for each: the messages themselves are tested in tests/unit/test_settings.py.
        pytest.param({"BCS_REDIS_URL": "localhost:6379"}, ["BCS_REDIS_URL"], marks=pytest.mark.release),
        pytest.param(
            {
                "BCS_REDIS_URL": "rediss://127.0.0.1?ssl_cert_reqs=CERT_NONE",
                "BCS_DATABASE_URL": "postgresql://u:a#b@127.0.0.1/db",
                "BCS_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092/",
            },
            ["BCS_REDIS_URL", "BCS_DATABASE_URL", "BCS_KAFKA_BOOTSTRAP_SERVERS"],
            marks=pytest.mark.release,
        ),
        ({"BCS_PIPELINE_CONFIG_PATH": "/nowhere.yaml"}, ["/nowhere.yaml"]),
    ],
)
async def test_wrong_settings_stop_the_start_with_a_message(
    tmp_path: Path, environment: dict[str, str], named: list[str]
) -> None:
    with BcsProcess(tmp_path, "serve", **environment) as process:
        assert await process.ended() == 2
    message = process.log.read_text()
    assert all(name in message for name in named)
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 1 + len(named)


@pytest.mark.release
async def test_a_cyclic_pipeline_file_stops_the_start_with_the_phases_named(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text("phases: [{name: fine}, {name: hen, requires: [egg]}, {name: egg, requires: [hen, fine]}]")
    with BcsProcess(tmp_path, "serve", BCS_PIPELINE_CONFIG_PATH=file) as process:
        assert await process.ended() == 2
    message = process.log.read_text()
    assert "hen" in message
    assert "egg" in message
    assert "fine" not in message
    assert "Traceback" not in message


async def test_a_port_in_use_stops_the_start_with_a_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {"BCS_HTTP_HOST": "127.0.0.1", "BCS_HTTP_PORT": port, "BCS_USE_MOCK_REPOSITORY": "true"}
        with BcsProcess(tmp_path, "serve", **environment) as process:
            assert await process.ended() == 1
    message = process.log.read_text()
    assert "in use" in message
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


async def test_with_the_state_in_memory_no_redis_is_needed(tmp_path: Path, prefix: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    environment = {"BCS_USE_MOCK_REPOSITORY": "true", "BCS_SHUTDOWN_SECONDS": 2}
    with serve(tmp_path, f"redis://{nowhere}", nowhere, **environment, forked=False) as process:
        await process.answers()
        async with Orchestrator(process.base) as orchestrator:
            assert (await orchestrator.complete(prefix, "spellcheck")).status == 200
            assert await orchestrator.to_run(prefix) == ["ai_feedback"]
            health = (await orchestrator.get("/healthz")).json
        assert health["dependencies"]["redis"]["status"] == "not_configured"
        port = process.environment["BCS_HTTP_PORT"]
        with BcsProcess(tmp_path / "probe", "healthcheck", BCS_HTTP_PORT=port, forked=False) as healthcheck:
            assert await healthcheck.ended() == 0
        process.signal(signal.SIGINT)
        assert await process.ended() == 0
    with BcsProcess(tmp_path / "probe", "healthcheck", BCS_HTTP_PORT=port) as probe:
        assert await probe.ended() == 1
    assert "Traceback" not in probe.log.read_text()


@pytest.mark.parametrize(
    ("argument", "said"), [("version", [__version__]), ("--help", ["serve", "dev", "healthcheck", "version"])]
)
async def test_the_command_line_explains_itself(tmp_path: Path, argument: str, said: list[str]) -> None:
    with BcsProcess(tmp_path, argument) as process:
        assert await process.ended() == 0
    assert all(word in process.output.read_text() for word in said)
    assert process.log.read_text() == ""


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_in_production_every_line_of_the_log_is_json(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, platform: Platform, prefix: str
) -> None:
    environment = {"BCS_ENVIRONMENT": "production", "BCS_HTTP_ACCESS_LOG": "true"}
    with serve(tmp_path, redis_url, kafka_bootstrap_servers, **environment) as process:
        await process.answers()
        async with Orchestrator(process.base) as orchestrator:
            await orchestrator.define(prefix, correlation_id="the-request")
        junk = await platform.send_raw(*[(topics.CJ_COMPLETED, b"key", b"\xff\nnot JSON")] * BROKEN)
        async with Orchestrator(process.base) as orchestrator:
            await wait_until(lambda: dead_letters(orchestrator, BROKEN))
            await orchestrator.define(prefix, "nonsense", correlation_id="the-refused")
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert process.output.read_text() == ""
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert all({"event", "level", "timestamp", "logger"} <= line.keys() for line in lines)
    assert all(line["instance"] == socket.gethostname() for line in lines)
    assert [line["route"] for line in lines if line.get("correlation_id") == "the-request"]
    refused = [line for line in lines if line.get("correlation_id") == "the-refused"]
    assert [(line["event"], line["status"], line["kind"], line["batch_id"]) for line in refused] == [
        ("request", 404, "unknown-pipeline", prefix)
    ]
    first, rest = (line for line in lines if line["event"] == "message_dead_lettered")
    assert 1 + rest["repeated"] >= BROKEN
    assert {first["topic"], rest["topic"]} == {junk[-1].topic}
    assert (rest["partition"], rest["offset"]) == (junk[-1].partition, junk[-1].offset)
    assert [line["exit_code"] for line in lines if line["event"] == "stopped"] == [0]


async def dead_letters(orchestrator: Orchestrator, count: int) -> bool:
    """Whether so many messages have become dead letters."""
    samples = await orchestrator.samples()
    return sum(value for name, _, value in samples if name == "bcs_dead_letters_total") >= count


@pytest.mark.release
async def test_a_log_that_nobody_reads_holds_up_neither_answers_nor_the_stop(tmp_path: Path, prefix: str) -> None:
    os.mkfifo(tmp_path / "stderr")
    unread = os.open(tmp_path / "stderr", os.O_RDONLY | os.O_NONBLOCK)
    capacity = fcntl.fcntl(unread, fcntl.F_SETPIPE_SZ, 4096)
    requests = capacity // 100
    nowhere = f"127.0.0.1:{free_port()}"
    environment = {
        "BCS_USE_MOCK_REPOSITORY": "true",
        "BCS_LOG_LEVEL": "DEBUG",
        "BCS_HTTP_ACCESS_LOG": "true",
        "BCS_SHUTDOWN_SECONDS": 5,
    }
    with serve(tmp_path, f"redis://{nowhere}", nowhere, **environment, forked=True) as process:
        await process.answers()
        async with Orchestrator(process.base, keep_alive=True) as orchestrator:
            for number in range(requests):
                assert (await orchestrator.complete(f"{prefix}-{number}", "spellcheck")).status == 200
            for probe in ("/healthz", "/readyz", "/metrics"):
                assert (await orchestrator.get(probe)).status == 200
        process.signal(signal.SIGTERM)
        await wait_until(lambda: process.process.poll() is not None)
        assert process.process.wait() == 0
    # Each has a line of some 250 bytes, and lines are written several at a time: the pipe had no room for most of them.
    assert os.read(unread, capacity).count(b"/phases/complete") < requests / 2, "the pipe was full"
    os.close(unread)


# --- stopping --------------------------------------------------------------------------------------------------------


class Callers:
    """Sends requests until the service does not listen any more."""

    def __init__(self, orchestrator: Orchestrator, prefix: str) -> None:
        self.orchestrator, self.prefix = orchestrator, prefix
        self.recorded: list[str] = []
        self.pruned: set[str] = set()
        self.refused = 0
        self.statuses: set[int] = set()

    async def call(self, worker: int) -> None:
        for number in range(100_000):
            name = f"{self.prefix}-{worker}-{number}"
            try:
                recorded = await self.orchestrator.complete(name, "spellcheck")
                self.statuses.add(recorded.status)
                if recorded.status == 200:
                    self.recorded.append(name)
                    resolved = await self.orchestrator.define(name, correlation_id=name)
                    self.statuses.add(resolved.status)
                    if resolved.status == 200:
                        assert resolved.json["final_pipeline"] == ["ai_feedback"]
                        self.pruned.add(name)
            except aiohttp.ClientConnectorError:
                self.refused += 1
                return


async def test_sigterm_under_traffic_loses_nothing_that_was_accepted(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, platform: Platform, prefix: str
) -> None:
    essays = [f"essay-{number}" for number in range(600)]
    batches = [f"{prefix}-events-{number}" for number in range(3)]
    first = serve(tmp_path / "first", redis_url, kafka_bootstrap_servers, BCS_SHUTDOWN_SECONDS=BUDGET_SECONDS)
    group = first.environment["BCS_KAFKA_CONSUMER_GROUP_ID"]
    with first:
        await first.answers()
        await platform.send(*(registered(batch, essays) for batch in batches))
        await wait_until(lambda: platform.caught_up(group))
        async with Orchestrator(first.base) as orchestrator, asyncio.TaskGroup() as tasks:
            callers = Callers(orchestrator, prefix)
            workers = [tasks.create_task(callers.call(worker)) for worker in range(8)]
            for start in range(0, len(essays), 100):
                events = [spellchecked(batch, essay) for essay in essays[start : start + 100] for batch in batches]
                await platform.send(*events)
                if start == 300:
                    await wait_until(lambda: len(callers.pruned) > 10)
                    first.signal(signal.SIGTERM)
            assert await first.ended(BUDGET_SECONDS + 2) == 0
            await asyncio.wait(workers)
    assert callers.statuses <= {200, 503}
    assert callers.refused == len(workers), "every other request was answered"
    names = {name: first.environment[name] for name in ("BCS_REDIS_KEY_PREFIX", "BCS_KAFKA_CONSUMER_GROUP_ID")}
    with serve(tmp_path / "second", redis_url, kafka_bootstrap_servers, **names) as second:
        await second.answers()
        await wait_until(lambda: platform.caught_up(group))
        async with Orchestrator(second.base, keep_alive=True) as orchestrator:
            for batch in (*batches, *callers.recorded):
                assert await orchestrator.to_run(batch) == ["ai_feedback"], batch
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
    announced = {record["data"]["correlation_id"] for record in values(await platform.messages(topics.PHASE_SKIPPED))}
    assert uuids(callers.pruned) <= announced


async def test_a_second_signal_stops_at_once(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, prefix: str
) -> None:
    with serve(tmp_path, redis_url, kafka_bootstrap_servers, BCS_HTTP_BODY_SECONDS=15) as process:
        await process.answers()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(process.environment["BCS_HTTP_PORT"]))
        # A request whose body never comes would hold up the stop until its time is up.
        writer.write(b"POST /internal/v1/pipelines/define HTTP/1.1\r\nHost: bcs\r\nContent-Length: 10\r\n")
        writer.write(b"Content-Type: application/json\r\n\r\n")
        await writer.drain()
        async with Orchestrator(process.base) as orchestrator:
            await wait_until(lambda: two_in_flight(orchestrator))
        process.signal(signal.SIGTERM)
        await wait_until(lambda: "stopping" in process.log.read_text())
        assert process.process.poll() is None
        process.signal(signal.SIGTERM)
        assert await process.ended() == 130
        writer.close()
        assert not (await reader.read()).startswith(b"HTTP/1.1 200")


async def two_in_flight(orchestrator: Orchestrator) -> bool:
    return await orchestrator.metric("bcs_http_requests_in_flight") == 2


# --- bcs dev ---------------------------------------------------------------------------------------------------------


async def test_the_demo_tells_its_story_and_leaves_nothing_running(tmp_path: Path) -> None:
    with BcsProcess(tmp_path, "dev", "--demo", BCS_HTTP_PORT=held_port()) as process:
        await wait_until(lambda: "That was the story" in process.output.read_text())
        output = process.output.read_text()
        started = re.findall(r"^Starting (\S+).* \.\.\. ready in \d+\.\d s$", output, re.MULTILINE)
        assert started == ["Redis", "Kafka", "PostgreSQL"]
        [log_file] = re.findall(r"^  Log +(\S+)$", output, re.MULTILINE)
        assert "started" in text_of(log_file)
        assert process.log.read_text() == "", "the log is not in the way of the story"
        story, after = output.split("1. Batch")[1].split("That was the story")
        answers = [line.split(": ", 1)[1] for line in story.splitlines() if "final_pipeline:" in line]
        assert [json.loads(answer) for answer in answers] == [
            ["spellcheck", "ai_feedback"],
            ["spellcheck", "ai_feedback"],
            ["ai_feedback"],
        ]
        assert "2 of 3 essays" in " ".join(story.split())
        assert "spellcheck pruned: all 3 essays have completed it" in " ".join(story.split())
        assert max(map(len, output.splitlines())) <= 80
        assert after.count(f"curl -s {process.base}/") >= 2
        assert not [line for line in story.splitlines() if line.startswith(("Starting", "2"))][1:], (
            "nothing comes between"
        )
        assert len(await beside(after, re.findall(r"bcs batches show (\S+)", after)[0])) == 3
        await process.answers("/healthz")
        children = process.children()
        assert len(children) == 3, "one Redis, one Kafka and one PostgreSQL"
        process.signal(signal.SIGINT)
        assert await process.ended() == 0
    assert not running(children)
    assert "Traceback" not in process.log.read_text()


def text_of(path: str) -> str:
    return Path(path).read_text()


async def beside(output: str, batch: str) -> list[str]:
    """The essays of a batch from a command with the variables of `bcs dev`."""
    variables = dict(re.findall(r"^  export (BCS_\w+)=(\S+)$", output, re.MULTILINE))
    assert variables["BCS_KAFKA_ENABLE_IDEMPOTENCE"] == "false"
    ran = await bcs("batches", "show", batch, "--phase", "ai_feedback", "--json", **variables)
    return [essay["essay_id"] for essay in ran.json["phases"][0]["blocking_essays"]]


def running(process_ids: list[int]) -> list[int]:
    return [process_id for process_id in process_ids if Path(f"/proc/{process_id}").exists()]
