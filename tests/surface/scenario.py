"""One small story that a service lives through, and what can be seen of it from outside."""

from __future__ import annotations

import base64
import getpass
import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from urllib.parse import urlsplit

import anyio
import asyncpg

from bcs.observability.failpoints import FailPoint
from bcs.wire import topics
from tests.support.commands import bcs, settings_of
from tests.support.kafka import Platform
from tests.support.service import COMPLETE, DEFINE, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until
from tests.surface import events
from tests.surface.comparing import Surface
from tests.surface.facts import lines_of
from tests.surface.http_calls import CORRELATION_ID, Calls, facts_of_problems, facts_of_routes, routers_seen
from tests.surface.kafka_messages import facts_of_messages, facts_of_topics
from tests.surface.metrics import facts_of_series
from tests.surface.placeholders import Placeholders
from tests.surface.redis_dump import Client, client, facts_of_redis, keys_under, waiting
from tests.surface.tables import facts_of_rows, facts_of_schema

# It must never change, or a repeated request would announce under other ids.
_NAMESPACE = uuid.UUID("6f0ff5e0-4a52-5b8f-9d33-2b1a7c9f5d10")
_BATCHES = "/internal/v1/batches"
_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_TRACE = {"traceparent": f"00-{_TRACE_ID}-00f067aa0ba902b7-01", "tracestate": "a=b"}
_NO_JSON = b"no JSON"
_DEAD = topics.dead_letter_topic(topics.ESSAYS_REGISTERED)
_SETTINGS: dict[str, object] = {
    "instance_name": "surface",
    "intake_commit_interval_seconds": 0.02,
    "chaos_enabled": True,
    "outbox_streams": 1,  # the same keys whatever the batch is called
    "http_body_seconds": 1.0,
    "http_head_seconds": 1.0,
    "http_max_body_bytes": 10_000,
    "archive_retention_days": 100_000,  # the story is of a day long ago
}


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the story's servers are.

    :param postgres_url: of a database beside the story's own, which is empty.
    """

    redis_url: str
    kafka: str
    postgres_url: str
    database_url: str


class _Gate:
    """Holds up the publisher while it is closed."""

    def __init__(self) -> None:
        self._closed = False

    @contextmanager
    def held_closed(self) -> Iterator[None]:
        """Close it for a while."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    async def reach(self, point: FailPoint, _: str) -> None:
        """See `Reach`. The gate is closed and opened in another thread, which has no event for this one."""
        while self._closed and point is FailPoint.PUBLISHER_LEASED:  # noqa: ASYNC110
            # Another thread opens the gate, and has no event for this one.
            await anyio.sleep(0.01)


async def play(servers: Servers) -> Surface:
    """Play the story once.

    :returns: what was seen: a family of facts for each kind of server.
    """
    story = _Story(servers)
    async with Platform(servers.kafka) as platform:
        return await story.play(platform)


class _Story:
    def __init__(self, servers: Servers) -> None:
        fresh = uuid.uuid4().hex[:12]
        self._servers = servers
        self._batch, self._other, self._prefix = f"batch-{fresh}", f"other-{fresh}", f"surface-{fresh}:"
        self._group = f"surface-{fresh}"
        database = urlsplit(servers.database_url).path[1:]
        self._words = Placeholders(
            {self._batch: "<batch>", self._other: "<other batch>", self._prefix: "<prefix>", database: "<database>"}
        )
        for url in (servers.redis_url, servers.database_url, servers.kafka):
            self._words.name(urlsplit(url).netloc.rpartition("@")[2] or url, "<address>")
        for number, said in enumerate((CORRELATION_ID, "again")):
            for phase in ("spellcheck", "nlp", "ai_feedback"):
                identity = f'["{said}", "{self._batch}", "{phase}"]'
                self._words.name(str(uuid.uuid5(_NAMESPACE, identity)), f"<announcement {number} of {phase}>")
        self._words.name(CORRELATION_ID, "<correlation id>")
        self._words.name(_TRACE_ID, "<trace id>")
        self._words.name(f"{getpass.getuser()}@{socket.gethostname()}", "<operator>")
        for name, word in ((self._batch, "<batch>"), (self._other, "<other batch>")):
            self._words.name(base64.b64encode(name.encode()).decode(), f"<base64 of {word[1:]}")
        self._gate = _Gate()
        self._redis: list[str] = []
        self._kafka: list[str] = []
        self._answers: dict[str, list[str]] = {}

    async def play(self, platform: Platform) -> Surface:
        servers = self._servers
        await self._command("db", "upgrade", "--json", BCS_DATABASE_URL=servers.database_url)
        schema = await facts_of_schema(servers.database_url)
        async with client(servers.redis_url) as redis:
            with routers_seen() as routers:
                async with self._service() as service, Orchestrator(service.base) as caller:
                    calls = Calls(service.base, caller, self._words)
                    rows, letter = await self._live(service, platform, redis, calls)
                    series = facts_of_series(await caller.samples())
                    await calls.ask("killed", "POST", "/internal/v1/actors/metrics/kill")
            await self._after_the_stop(service, letter, platform, redis)
        [router] = routers
        return {
            "http": [*facts_of_routes(router), *facts_of_problems(), *calls.lines],
            "redis": self._redis,
            "kafka": [*facts_of_topics(), *self._kafka],
            "schema": schema,
            "rows": rows,
            "command_answers": [line for _, lines in sorted(self._answers.items()) for line in lines],
            "series": series,
        }

    async def _live(
        self, service: RunningService, platform: Platform, redis: Client, calls: Calls
    ) -> tuple[list[str], str]:
        """What happens while the service runs. Commands run beside that: each takes a while to start.

        :returns: what PostgreSQL has in the best of times, and where a dead letter lies.
        """
        await wait_until(lambda: self._healthy(calls), description="all dependencies answer")
        async with anyio.create_task_group() as group:
            # The first event waits for the consumer group.
            group.start_soon(self._ask_wrongly, calls)
            await self._while_all_is_well(platform, redis, calls)
        rows = await facts_of_rows(self._servers.database_url, self._words)
        async with anyio.create_task_group() as group:
            group.start_soon(self._commands, service, ("batches", "show", self._batch, "--json"))
            await self._with_a_batch_that_can_not_be_read(redis, calls)
            letter = await self._with_dead_letters(platform, redis)
        async with anyio.create_task_group() as group:
            shown, listed = ("dlq", "show", letter, "--json"), ("dlq", "list", "--json", "--batch", self._other)
            group.start_soon(self._commands, service, shown, listed)
            await self._while_others_are_away(service, platform, redis, calls)
        return rows, letter

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[RunningService]:
        servers = self._servers
        async with running_service(
            self._gate.reach,
            redis_url=servers.redis_url,
            kafka_bootstrap_servers=servers.kafka,
            database_url=servers.database_url,
            redis_key_prefix=self._prefix,
            kafka_consumer_group_id=self._group,
            **_SETTINGS,
        ) as service:
            yield service

    async def _while_all_is_well(self, platform: Platform, redis: Client, calls: Calls) -> None:
        batch = self._batch
        await calls.ask("healthz", "GET", "/healthz")
        await calls.ask("readyz", "GET", "/readyz")
        await calls.ask("actors", "GET", "/internal/v1/actors", shape_only=True)
        await calls.ask("nothing known", "POST", DEFINE, json=self._asked("ai_feedback"))
        await calls.ask("warned", "POST", DEFINE, json={**self._asked("nlp"), "batch_metdata": {}})
        # Each is committed before the next one comes.
        for event in (
            events.registered(batch, 1),
            events.ended(batch, 2, "spellcheck", events.ESSAYS),
            events.spellchecked(batch, 3, "essay-1", "completed"),
            events.judged(batch, 4, ["essay-1", "essay-2"], ["essay-3"]),
            events.ended(batch, 5, "nlp", ["essay-1"], ["essay-2"]),
        ):
            await platform.send(event)
            # To look at the batch meanwhile might unite it with the record, which counts as a version.
            await wait_until(lambda: platform.caught_up(self._group))
        await calls.ask("reported", "POST", COMPLETE, json={"batch_id": batch, "phase_name": "nlp", "success": False})
        await calls.ask("pruned", "POST", DEFINE, json=self._asked("ai_feedback"), headers=_TRACE)
        skipped = await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        self._kafka += facts_of_messages("announcement", skipped, self._words)
        await calls.ask("batch", "GET", f"{_BATCHES}/{batch}")
        await calls.ask("page of a batch", "GET", f"{_BATCHES}/{batch}?limit=1")
        order = {"phases": ["spellcheck", "nlp"], "reason": "surface", "dry_run": True}
        await calls.ask("to be taken back", "POST", f"{_BATCHES}/{batch}/invalidate", json=order)
        await wait_until(lambda: self._has_entries(calls, 9))
        await calls.ask("history", "GET", f"{_BATCHES}/{batch}/history")
        await calls.ask("page of a history", "GET", f"{_BATCHES}/{batch}/history?limit=1")
        await wait_until(lambda: self._nothing_waits(redis))
        await wait_until(lambda: self._summary_is_stored(redis))
        self._redis += await facts_of_redis(redis, self._prefix, "all is well", self._words)

    async def _ask_wrongly(self, calls: Calls) -> None:
        asked = self._asked("ai_feedback")
        await calls.ask("unknown batch", "GET", f"{_BATCHES}/nobody")
        await calls.ask("unknown batch's history", "GET", f"{_BATCHES}/nobody/history")
        order = {"phases": ["nlp"], "reason": "surface"}
        await calls.ask("unknown batch's invalidation", "POST", f"{_BATCHES}/nobody/invalidate", json=order)
        await calls.ask("invalid query", "GET", f"{_BATCHES}/nobody?limit=0")
        await calls.ask("invalid body", "POST", DEFINE, json={"batch_id": "", "requested_pipline": "x"})
        await calls.ask("unknown phase", "POST", COMPLETE, json={"batch_id": "b", "phase_name": "x", "success": True})
        await calls.ask("unknown pipeline", "POST", DEFINE, json={**asked, "requested_pipeline": "x"})
        no_prompt = {**asked, "requested_pipeline": "comprehensive", "batch_metadata": {"prompt_attached": False}}
        await calls.ask("no prompt", "POST", DEFINE, json=no_prompt)
        await calls.ask("nowhere", "GET", "/nowhere")
        await calls.ask("other method", "PUT", DEFINE)
        await calls.ask("no JSON", "POST", DEFINE, data=b"x", headers={"Content-Type": "text/plain"})
        await calls.ask("too large", "POST", DEFINE, json={**asked, "more": "x" * 10_000})
        await calls.ask("unexpected", "POST", DEFINE, json=asked, headers={"Expect": "the unexpected"})
        await calls.ask("unknown actor", "POST", "/internal/v1/actors/nobody/kill")
        head = f"POST {DEFINE} HTTP/1.1\r\nHost: x\r\nX-Correlation-ID: surface\r\nContent-Type: application/json\r\n"
        async with anyio.create_task_group() as group:
            for name, request in {
                "unreadable": b"this is not HTTP\r\n\r\n",
                "late body": head.encode() + b"Content-Length: 9\r\n\r\n",
                "late head": b"GET /healthz HTTP/1.1\r\n",
                "large head": b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 70_000,
            }.items():
                group.start_soon(calls.send, name, request)

    async def _with_a_batch_that_can_not_be_read(self, redis: Client, calls: Calls) -> None:
        for key in await keys_under(redis, self._prefix):
            if self._batch in key.decode():
                await redis.set(key.decode().replace(self._batch, self._other), "not ours", ex=60)
        await calls.ask("corrupted", "POST", DEFINE, json={**self._asked("nlp"), "batch_id": self._other})

    async def _with_dead_letters(self, platform: Platform, redis: Client) -> str:
        """One of an event, one of a request, and one that the publisher can't read.

        :returns: where the event's letter lies.
        """
        await platform.send_raw((topics.ESSAYS_REGISTERED, self._batch.encode(), _NO_JSON))
        letters = await wait_until(lambda: platform.messages(_DEAD, self._batch))
        self._kafka += facts_of_messages("dead letter", letters, self._words)
        failed = await wait_until(lambda: platform.messages(topics.dead_letter_topic(topics.RESOLUTION), self._other))
        self._kafka += facts_of_messages("dead letter", failed, self._words)
        await redis.xadd(f"{self._prefix}{{outbox}}", {"not": "ours"})
        await wait_until(lambda: self._waits(redis, {"{outbox}:parked": 1}))
        [letter] = letters
        return f"{letter.topic}/{letter.partition}/{letter.offset}"

    async def _while_others_are_away(
        self, service: RunningService, platform: Platform, redis: Client, calls: Calls
    ) -> None:
        """PostgreSQL takes no connections, and the publisher holds what it has in hand."""
        batch = self._batch
        # A drain that is cut off in the middle waits with the cause of that, until it is woken again. Entries that only
        # explain something wait in memory.
        await wait_until(lambda: archive_is_idle(service))
        await wait_until(lambda: self._nothing_waits(redis))
        with self._gate.held_closed():
            async with self._no_connections():
                await wait_until(lambda: self._noticed(calls), description="PostgreSQL counts as away")
                await calls.ask("degraded", "GET", "/healthz")
                await calls.ask("history away", "GET", f"{_BATCHES}/{batch}/history")
                again = {**self._asked("ai_feedback"), "correlation_id": "again"}
                await calls.ask("pruned again", "POST", DEFINE, json=again)
                version = await self._version(redis)
                await platform.send(events.spellchecked(batch, 6, "essay-2", "failed"))
                await platform.send_raw((topics.ESSAYS_REGISTERED, batch.encode(), _NO_JSON))
                wanted = {"{outbox}": 2, "{outbox}:archive": 1, "{outbox}:explanations": 1}
                await wait_until(lambda: self._waits(redis, wanted))
                # The queue has a fact before Redis has it.
                await wait_until(lambda: self._is_committed(redis, version + 1))
                self._redis += await facts_of_redis(redis, self._prefix, "others are away", self._words)
        await wait_until(lambda: self._nothing_waits(redis))

    async def _after_the_stop(self, service: RunningService, letter: str, platform: Platform, redis: Client) -> None:
        """What operators leave for the next service."""
        [sent] = await platform.send(events.registered(self._other, 7))
        place = (sent.topic, str(sent.partition), str(sent.offset))
        await self._commands(
            service,
            ("intake", "skip", *place, "--reason", "because", "--yes", "--wait", "0", "--json"),
            ("dlq", "replay", letter, "--json"),
        )
        found = await facts_of_redis(redis, self._prefix, "an order waits", self._words)
        self._redis += [line for line in found if "{intake}" in line]
        mark = f"replayed:{letter.rpartition('/')[2]}"
        marks = await platform.messages(_DEAD, mark)
        self._words.name(mark, "replayed:<offset>")
        self._kafka += facts_of_messages("replay marker", marks[-1:], self._words)
        again = [each for each in await platform.messages(topics.ESSAYS_REGISTERED, self._batch) if each.headers]
        self._kafka += facts_of_messages("replayed", again[-1:], self._words)

    async def _commands(self, service: RunningService, *commands: tuple[str, ...]) -> None:
        """Run them beside each other."""
        # The embedded broker has no idempotent producers.
        more = {"BCS_DATABASE_URL": self._servers.database_url, "BCS_KAFKA_ENABLE_IDEMPOTENCE": False}
        async with anyio.create_task_group() as group:
            for command in commands:
                group.start_soon(partial(self._command, *command, **settings_of(service), **more))

    async def _command(self, *arguments: str, **environment: object) -> None:
        ran = await bcs(*arguments, **environment)
        assert ran.output, ran.error
        name = " ".join(["bcs", *takewhile(str.isalpha, arguments)])
        self._answers[name] = [
            f"{name}: exit code {ran.exit_code}",
            *lines_of(name, self._words.document(json.loads(ran.output))),
        ]

    def _asked(self, pipeline: str) -> dict[str, object]:
        return {"batch_id": self._batch, "requested_pipeline": pipeline, "correlation_id": CORRELATION_ID}

    async def _healthy(self, calls: Calls) -> bool:
        return bool((await calls.look("/healthz"))["status"] == "healthy")

    async def _noticed(self, calls: Calls) -> bool:
        """Whether the service knows that PostgreSQL has no such database, and waits for it."""
        said = await calls.look("/healthz")
        # Connections that end in the middle of something are another cause, for a moment.
        causes = [said["dependencies"]["postgresql"]["message"], *(wait["cause"] for wait in said["waits"]["archive"])]
        return len(causes) > 1 and all("InvalidCatalogName" in cause for cause in causes)

    async def _has_entries(self, calls: Calls, count: int) -> bool:
        return len((await calls.look(f"{_BATCHES}/{self._batch}/history")).get("entries", [])) >= count

    async def _waits(self, redis: Client, wanted: dict[str, int]) -> bool:
        found = await waiting(redis, self._prefix)
        return all(found.get(name) == count for name, count in wanted.items())

    async def _version(self, redis: Client) -> int:
        """The version of the batch in Redis."""
        [key] = [key for key in await keys_under(redis, f"{self._prefix}{{{self._batch}}}") if key.endswith(b":facts")]
        return int(await redis.hget(key, "version"))

    async def _is_committed(self, redis: Client, version: int) -> bool:
        return await self._version(redis) == version

    async def _summary_is_stored(self, redis: Client) -> bool:
        keys = [key for key in await keys_under(redis, f"{self._prefix}{{{self._batch}}}") if b":summary:" in key]
        versions = [json.loads(await redis.get(key))["v"] for key in keys]
        return versions == [await self._version(redis)]

    async def _nothing_waits(self, redis: Client) -> bool:
        return not {name for name in await waiting(redis, self._prefix) if not name.endswith(("parked", "history"))}

    @asynccontextmanager
    async def _no_connections(self) -> AsyncIterator[None]:
        """Have PostgreSQL know nothing of the story's database."""
        name = urlsplit(self._servers.database_url).path[1:]
        connection = await asyncpg.connect(self._servers.postgres_url)
        try:
            await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            await wait_until(lambda: self._renamed(connection, name, f"{name}-away"))
            try:
                yield
            finally:
                await self._renamed(connection, f"{name}-away", name)
                await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        finally:
            await connection.close()

    async def _renamed(self, connection: asyncpg.Connection, name: str, other: str) -> bool:
        try:
            await connection.execute(f'ALTER DATABASE "{name}" RENAME TO "{other}"')
        except asyncpg.ObjectInUseError:
            return False  # a session has not ended yet
        return True


def archive_is_idle(service: RunningService) -> bool:
    """Whether the archive's actor has nothing to write, and writes nothing."""
    [archive] = [child for child in service.snapshot().children if child.name == "archive"]
    return archive.mailbox_depth == 0
