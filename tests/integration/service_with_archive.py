"""A service with its own Redis and a PostgreSQL behind a proxy; both can be made to fail or to lose data."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import anyio.to_thread
from redis.asyncio import Redis

from bcs.actors.messages import ApplyFacts, HttpSource
from bcs.domain.facts import Fact
from bcs.domain.history import FactsRecorded
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.postgres.archive import PostgresArchive
from bcs.supervision import ActorDied
from tests.support.databases import archive_in
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_servers import redis_server
from tests.support.service import Answer, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

T = TypeVar("T")

_ASK_SECONDS = 20.0


class ServiceWithArchive:
    """Drives the service's own actors, all but those that need Kafka.

    :param directory: for the servers' files.
    :param database_url: of an empty database.
    :param redis_options: of Redis, on its command line.
    :param redis_login: with which the service logs in to Redis, such as `user:password@`.
    :param settings: of the service, above the usual ones.
    """

    running: RunningService
    orchestrator: Orchestrator
    archive: PostgresArchive
    redis: Redis

    def __init__(
        self,
        directory: Path,
        database_url: str,
        *,
        redis_options: Sequence[str] = (),
        redis_login: str = "",
        **settings: object,
    ) -> None:
        self._settings = settings
        self._redis_options = redis_options
        self._redis_login = redis_login
        self._directory = directory
        self._database_url = database_url
        self._stack = AsyncExitStack()
        self._service = ExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        server = redis_server(self._directory, *self._redis_options)
        self._store = await anyio.to_thread.run_sync(self._stack.enter_context, server)
        self.redis_proxy = await enter(FaultProxy("127.0.0.1", self._store.port))
        target = urlsplit(self._database_url)
        self.database_proxy = await enter(FaultProxy(target.hostname or "", target.port or 0))
        self.archive = await enter(archive_in(self._database_url))
        self.redis = await enter(Redis.from_url(f"redis://{self._store.address}"))
        await self._start()
        await self.wait_for_archive()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        await self._stack.aclose()

    async def restart(self) -> None:
        """Another process in the place of the first."""
        await self._stop()
        await self._start()

    async def apply(self, batch_id: str, facts: Sequence[Fact]) -> None:
        """Have facts recorded, as those of a Kafka message are, however often that takes."""
        report = HttpSource(uuid.uuid4(), "correlation", "the test")

        def build(reply: object) -> ApplyFacts:
            return ApplyFacts(batch_id, tuple(facts), source=report, reply=reply)  # type: ignore[arg-type]

        async def ask() -> bool:
            await self.running.service.batches.ask(batch_id, build, _ASK_SECONDS)
            return True

        # A connection that broke while Redis was away is found out by whoever uses it next.
        await wait_until(lambda: self._on_its_loop(ask), ignoring=(StoreUnavailable, ActorDied))

    async def resolve(self, batch_id: str) -> Answer:
        """Resolve a pipeline."""
        return await self.orchestrator.define(batch_id, "ai_feedback")

    async def resolve_in_the_end(self, batch_id: str) -> Answer:
        """Resolve a pipeline, and retry until there is an answer."""

        async def answered() -> Answer | None:
            answer = await self.resolve(batch_id)
            return answer if answer.status == 200 else None

        answer = await wait_until(answered)
        assert answer is not None
        return answer

    async def wait_for_redis(self) -> None:
        """Wait until the service answers from Redis."""

        async def by_redis() -> bool:
            answer = await self.resolve("nobody's")
            return answer.status == 200 and answer.json["source"] == "redis"

        await wait_until(by_redis)

    async def flush(self) -> None:
        """Delete all data in Redis."""
        await self.redis.flushall()

    async def snapshot(self) -> dict[bytes, tuple[int, bytes]]:
        """Everything that Redis has now."""
        keys: list[Any] = await self.redis.keys()
        return {key: (await self.redis.pttl(key), dumped) for key in keys if (dumped := await self.redis.dump(key))}

    async def roll_back(self, snapshot: dict[bytes, tuple[int, bytes]], *, wait: bool = True) -> None:
        """Restart Redis with earlier data, like a Redis that lost its last seconds, or a replica."""
        # Nobody may write to it before it has what it had.
        self.redis_proxy.refuse()
        await self.redis_proxy.cut()
        await anyio.to_thread.run_sync(self._store.kill)
        await anyio.to_thread.run_sync(self._store.start)
        await self.redis.connection_pool.disconnect()  # those to the server that is gone
        for key, (ttl_ms, dumped) in snapshot.items():
            await self.redis.restore(key, max(0, ttl_ms), dumped)
        self.redis_proxy.accept()
        if wait:
            await self.wait_for_redis()

    async def kill(self, actor: str) -> None:
        """Kill an actor; it is started again."""
        before = await anyio.to_thread.run_sync(self._incarnation, actor)
        await anyio.to_thread.run_sync(self.running.call, self.running.service.root.kill, actor, "the test wants it")

        def started_again() -> bool:
            return self._incarnation(actor) > before

        await wait_until(lambda: anyio.to_thread.run_sync(started_again))

    async def wait_for_archive(self) -> None:
        """Wait until the service has found PostgreSQL again, and nothing waits for it any more."""
        archive = self.running.service.persistence.archive
        assert archive is not None
        await wait_until(lambda: archive.postgres.reachable)

        async def drained() -> bool:
            return await self._on_its_loop(archive.backlog.backlog) == 0

        await wait_until(drained, ignoring=(StoreUnavailable,))

    async def state(self, batch_id: str) -> BatchState:
        """The service's state of a batch."""

        async def read() -> list[BatchState]:
            return [await self.running.service.store.state(batch_id)]

        [state] = await wait_until(lambda: self._on_its_loop(read), ignoring=(StoreUnavailable,))
        return state

    async def history_facts(self, batch_id: str) -> list[tuple[Fact, ...]]:
        """The facts in the history, oldest first."""
        entries = [kept.entry for kept in await self.archive.history(batch_id, limit=10_000)]
        return [entry.facts for entry in reversed(entries) if isinstance(entry, FactsRecorded)]

    async def _on_its_loop(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await anyio.to_thread.run_sync(self.running.run, function)

    def _incarnation(self, actor: str) -> int:
        return dict(self.running.snapshot().iter_flat())[actor].incarnation

    async def _start(self) -> None:
        target = urlsplit(self._database_url)
        login = target.netloc.rpartition("@")[0]
        starting = service_in_thread(
            redis_url=f"redis://{self._redis_login}{self.redis_proxy.address}",
            redis_key_prefix="bcs:",
            redis_deadline_seconds=0.3,
            redis_breaker_open_seconds=0.05,
            database_url=target._replace(netloc=f"{login}@{self.database_proxy.address}").geturl(),
            database_deadline_seconds=0.3,
            database_first_probe_seconds=0.2,  # while it is frozen, each start waits so long in vain
            kafka_bootstrap_servers="127.0.0.1:1",
            # Actors are killed without number.
            restart_max=1_000_000,
            restart_backoff_maximum_seconds=0.05,
            **self._settings,
        )
        self.running = await anyio.to_thread.run_sync(self._service.enter_context, starting)
        self.orchestrator = Orchestrator(self.running.base)

    async def _stop(self) -> None:
        await self.orchestrator.__aexit__()
        await anyio.to_thread.run_sync(self._service.close)
