"""A running BCS: in a thread of this process with an event loop of its own, or as a process of its own."""

import importlib
import json
import os
import re
import signal
import subprocess
import sysconfig
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar, cast

import aiohttp
import anyio
import anyio.abc
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines
from bcs.config.settings import Settings
from bcs.observability.failpoints import FailPointHook, fail_points
from bcs.observability.tracer_factory import open_tracer
from bcs.observability.tracing import Tracer
from bcs.runtime.tree import Service
from bcs.supervision import Snapshot
from tests.support.forked import ForkedProcess, bcs_command
from tests.support.ports import held_port
from tests.support.tiers import IN_FULL
from tests.support.waiting import PATIENCE_SECONDS, wait_until

T = TypeVar("T")

# A service goes on in its thread beside property tests, which object when anybody but them uses the random numbers that
# all of a process share. aiokafka chooses its nodes with them, tenacity its waits.
_DRAW = ("aiokafka.client", "aiokafka.conn", "aiokafka.consumer.fetcher", "aiokafka.partitioner", "tenacity.wait")
for module in _DRAW:
    vars(importlib.import_module(module))["random"] = Random()

_INSTALLED = Path(sysconfig.get_path("scripts")) / "bcs"
DEFINE = "/internal/v1/pipelines/define"
COMPLETE = "/internal/v1/phases/complete"

# Loopback is quick, and so are failures on it; what a deployment waits for patiently would only make the suite slow.
QUICK: Mapping[str, object] = {
    "environment": "testing",
    "http_host": "127.0.0.1",
    "kafka_enable_idempotence": False,  # the embedded broker can't
    "kafka_session_timeout_seconds": 2.0,
    "kafka_heartbeat_interval_seconds": 0.3,
    "kafka_request_timeout_seconds": 4.0,
    "kafka_metadata_max_age_seconds": 2.0,
    "kafka_probe_interval_seconds": 0.3,
    "intake_commit_interval_seconds": 0.1,
    "intake_retry_seconds": 0.3,
    "outbox_poll_interval_seconds": 0.1,
    "outbox_unwritable_seconds": 0.5,
    "outbox_takeover_seconds": 1.0,
    "redis_probe_interval_seconds": 0.1,
    "database_probe_interval_seconds": 0.1,
    # On a machine that has much to do, PostgreSQL would be found only after the first requests, which then get 503.
    "database_first_probe_seconds": 40.0,
    "database_deadline_seconds": 4.0,  # a machine that has much to do must not look like an outage
    "retry_maximum_seconds": 0.3,
    "shutdown_drain_seconds": 0.0,
    "metrics_interval_seconds": 0.1,
}


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


@dataclass
class RunningService:
    """One service in a thread."""

    service: Service
    _portal: BlockingPortal

    @property
    def base(self) -> str:
        """Where it listens."""
        return f"http://{self.service.address[0]}:{self.service.address[1]}"

    @property
    def group(self) -> str:
        """Its consumer group."""
        return self.service.settings.kafka_consumer_group_id

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on the service's event loop."""
        result: T = self._portal.call(function, *args)
        return result

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Run a coroutine function on the service's event loop."""
        result: T = self._portal.call(function, *args)
        return result

    def begin(self, function: Callable[[], Coroutine[Any, Any, None]]) -> Future[None]:
        """Start a coroutine function on the service's event loop; to cancel the future ends it."""
        return self._portal.start_task_soon(function)

    def snapshot(self) -> Snapshot:
        """Its supervision tree."""
        return self.call(self.service.root.snapshot)

    def restarts(self) -> dict[str, int]:
        """How often each of its actors was started again; batches' actors are not among them."""
        return {child.name: child.restarts for child in self.snapshot().children}

    def restarted(self) -> list[str]:
        """Those that were started again at least once."""
        return [name for name, restarts in self.restarts().items() if restarts]


@contextmanager
def service_in_thread(
    hook: FailPointHook | None = None,
    now: Callable[[], datetime] = utc_now,
    tracer_of: Callable[[Settings], Tracer] = open_tracer,
    /,
    **overrides: object,
) -> Iterator[RunningService]:
    """Start a service, with settings that stand above those for tests, and stop it in order at the end.

    :param hook: makes things go wrong at fail points; called on the service's event loop.
    :param now: the service's clock.
    :param tracer_of: makes what begins its spans.
    """
    fresh = uuid.uuid4().hex[:12]
    names = {"redis_key_prefix": f"test-{fresh}:", "kafka_consumer_group_id": f"test-{fresh}"}
    settings = load_settings(**{**QUICK, "http_port": 0, **names, **overrides})
    stop = anyio.Event()

    async def run(*, task_status: anyio.abc.TaskStatus[Service]) -> bool:
        service = Service(settings, load_pipelines(None), now=now, tracer=tracer_of(settings))
        with fail_points(hook):
            return await service.run(stop, lambda: task_status.started(service))

    with start_blocking_portal("asyncio", {"use_uvloop": True}) as portal:
        ended: Future[bool]
        ended, service = portal.start_task(run)
        try:
            yield RunningService(service, portal)
        finally:
            portal.call(stop.set)
            in_time = ended.result(settings.shutdown_seconds + 10)
        assert in_time, "the time to stop was not enough"


@asynccontextmanager
async def running_service(
    hook: FailPointHook | None = None,
    now: Callable[[], datetime] = utc_now,
    tracer_of: Callable[[Settings], Tracer] = open_tracer,
    /,
    **overrides: object,
) -> AsyncIterator[RunningService]:
    """The same, without holding up the caller's event loop, on which proxies may run."""
    with ExitStack() as stack:
        starting = service_in_thread(hook, now, tracer_of, **overrides)
        service = await anyio.to_thread.run_sync(stack.enter_context, starting)
        try:
            yield service
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(stack.close)


@dataclass(frozen=True)
class Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document in it."""
        return json.loads(self.body)


class Orchestrator:
    """BOS: calls the service over HTTP, each call on a connection of its own unless ``keep_alive``."""

    def __init__(self, base: str, *, keep_alive: bool = False, token: str | None = None) -> None:
        self._session = aiohttp.ClientSession(
            base,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            connector=aiohttp.TCPConnector(limit=0, force_close=not keep_alive),
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(self, method: str, path: str | URL, **options: Any) -> Answer:
        """Any request."""
        async with self._session.request(method, path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Answer:
        """A GET."""
        return await self.request("GET", path)

    async def define(self, batch_id: str, pipeline: str = "ai_feedback", **fields: object) -> Answer:
        """Ask what is still to run."""
        body = {"batch_id": batch_id, "requested_pipeline": pipeline, "correlation_id": str(uuid.uuid4()), **fields}
        return await self.request("POST", DEFINE, json=body)

    async def to_run(self, batch_id: str, pipeline: str = "ai_feedback", **fields: object) -> list[str]:
        """The phases still to run; the answer has to be one."""
        answer = await self.define(batch_id, pipeline, **fields)
        assert answer.status == 200, answer.body
        phases: list[str] = answer.json["final_pipeline"]
        return phases

    async def complete(self, batch_id: str, phase: str, success: bool = True) -> Answer:
        """Report a phase as a whole."""
        return await self.request(
            "POST", COMPLETE, json={"batch_id": batch_id, "phase_name": phase, "success": success}
        )

    async def metric(self, name: str, **labels: str) -> float | None:
        """A sample's value; None when there is no such sample."""
        for sample_name, sample_labels, value in await self.samples(name):
            if sample_name == name and sample_labels == labels:
                return value
        return None

    async def samples(self, prefix: str = "") -> list[tuple[str, dict[str, str], float]]:
        """All samples whose names begin like this: name, labels and value."""
        lines = (await self.get("/metrics")).body.decode().splitlines(keepends=True)
        # Conditions are polled, and the parser needs milliseconds for all of it.
        text = "".join(line for line in lines if line.startswith(prefix))
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]


class BcsProcess:
    """``bcs`` with some arguments as a process of its own; its outputs go to files in ``directory``.

    :param forked: true: from a process that has imported everything, as at a commit; else the installed command is
        started, which takes more than a second of CPU. An object to mypy, as the settings beside it are.
    :param command: the words of what runs instead of the installed command; an object for the same reason.
    :param program: a function that is forked in the place of ``bcs``, see `ForkedProcess`; the same.
    :param environment: `BCS_*` variables; of this process's own environment it gets none of them.
    """

    process: subprocess.Popen[bytes] | ForkedProcess

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        forked: object = not IN_FULL,
        command: object = (),
        program: object = None,
        **environment: object,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BCS_")}
        self.environment = {name: str(value) for name, value in environment.items()}
        variables = {**inherited, "PYTHONWARNINGS": "error", **self.environment}
        self.output, self.log = directory / "stdout", directory / "stderr"
        with self.output.open("wb") as output, self.log.open("wb") as log:
            if program or (forked and not command):
                self.process = ForkedProcess(
                    arguments,
                    variables,
                    stdin=Path(os.devnull),
                    stdout=self.output,
                    stderr=self.log,
                    program=cast("Callable[[], None]", program or bcs_command),
                )
                return
            self.process = subprocess.Popen(
                [*(cast("Sequence[str]", command) or [str(_INSTALLED)]), *arguments],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def base(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.environment['BCS_HTTP_PORT']}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end.

        :returns: its exit code.
        """
        await wait_until(
            lambda: self.process.poll() is not None, timeout_seconds, description=f"it ends; {self.log.read_text()}"
        )
        return self.process.wait()

    async def answers(self, path: str = "/readyz") -> None:
        """Wait until it answers with 200."""

        async def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            async with Orchestrator(self.base) as caller:
                return (await caller.get(path)).status == 200

        await wait_until(ready, ignoring=(aiohttp.ClientError,))

    def children(self) -> list[int]:
        """The ids of its child processes (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in re.findall(r"\d+", task.read_text())]


def serve(
    directory: Path, redis_url: str, kafka: str, *, forked: object = not IN_FULL, **environment: object
) -> BcsProcess:
    """``bcs serve`` on a free port, with its own names in the store and on the broker.

    :param forked: see `BcsProcess`.
    """
    fresh = uuid.uuid4().hex[:12]
    settings = {
        **QUICK,
        "redis_url": redis_url,
        "redis_key_prefix": f"test-{fresh}:",
        "kafka_bootstrap_servers": kafka,
        "kafka_consumer_group_id": f"test-{fresh}",
        "http_port": held_port(),
    }
    variables = {f"BCS_{name.upper()}": value for name, value in settings.items()}
    return BcsProcess(directory, "serve", forked=forked, **{**variables, **environment})
