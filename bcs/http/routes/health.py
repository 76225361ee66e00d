"""Health routes: liveness, readiness, and metrics.

The handlers use the last known status and wait for nothing: an outage of Redis must not restart all replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from bcs import __version__
from bcs.actors.redis_probe import RedisStatus, failure_of_redis, problem_of_redis
from bcs.config.settings import Settings
from bcs.http import answers, definition_answers, service_answers
from bcs.http.documents import definitions_version
from bcs.http.problems import Problem, draining
from bcs.http.reloaded import Reloaded
from bcs.http.replies import reply_json
from bcs.http.routing import Group, Route, serves
from bcs.kafka.status import KafkaStatus
from bcs.observability.waits import CONNECT_PRODUCER, READ_KAFKA, WAITING_ACTORS, Wait, Waits
from bcs.storage.archive import Archive
from bcs.storage.ports import StateStore
from bcs.supervision import Snapshot, State
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.wire.published import SERVICE, rfc3339

_WITH_PROBLEMS = frozenset({"degraded", "unhealthy"})
# The states in which an actor's callers have to wait.
_DISTURBED = frozenset({State.BACKING_OFF, State.STARTING, State.UNRESPONSIVE, State.ENDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthHandlers:
    """The handlers of the health routes.

    :param archive: None without an archive.
    :param redis_address: the address of Redis without the login; empty where the state is in memory.
    :param redis: the result of the last check of Redis.
    :param waits: the current waits of the actors.
    :param render_metrics: renders the metrics as text.
    :param snapshot: takes a snapshot of the supervision tree.
    :param definitions: the pipeline definitions in use.
    :param draining: returns True once the service must stop.
    :param credentials: the files of callers and certificates.
    """

    settings: Settings
    store: StateStore
    archive: Archive | None
    redis_address: str
    redis: RedisStatus
    kafka: KafkaStatus
    waits: Waits
    render_metrics: Callable[[], bytes]
    snapshot: Callable[[], Snapshot]
    draining: Callable[[], bool]
    definitions: ActiveDefinitions
    credentials: Sequence[Reloaded[Any]] = ()

    @serves(
        Route(
            method="GET",
            path="/healthz",
            name="healthz",
            group=Group.HEALTH,
            summary="Liveness: 503 while an actor ignores its cancellation",
            answers={HTTPStatus.OK: service_answers.Health, HTTPStatus.SERVICE_UNAVAILABLE: service_answers.Health},
            probe=True,
        )
    )
    async def healthz(self, _: web.Request) -> web.Response:
        """GET /healthz: liveness. The outage of a dependency is no reason to restart this process."""
        tree = self.snapshot()
        return reply_json(self.document(tree), HTTPStatus.OK if tree.healthy else HTTPStatus.SERVICE_UNAVAILABLE)

    def document(self, tree: Snapshot) -> service_answers.Health:
        """The health of this process and of its dependencies, from what is known; no dependency is asked.

        :param tree: the supervision tree now.
        """
        redis = self._redis()
        servers = f"{self.settings.kafka_bootstrap_servers} (BCS_KAFKA_BOOTSTRAP_SERVERS)"
        problem = self._problem_of_kafka()
        kafka = _dependency(not problem, problem, servers)
        postgresql = self._postgresql()
        disturbed = [path for path, node in tree.iter_flat() if node.state in _DISTURBED and "/" not in path]
        dependencies: service_answers.Dependencies = {"redis": redis, "kafka": kafka, "postgresql": postgresql}
        named = (("redis", redis), ("kafka", kafka), ("postgresql", postgresql))
        credentials = self._credentials()
        away = [name for name, dependency in named if dependency["status"] in _WITH_PROBLEMS] + list(credentials)
        waits = {actor: [_wait(wait) for wait in self.waits.of(actor)] for actor in self._waiting_actors()}
        waiting = [f"{actor} waits" for actor, found in waits.items() if found]
        status: answers.Status = "healthy"
        message = "all actors run and all dependencies answer"
        if not tree.healthy:
            status, message = "unhealthy", "an actor ignores its cancellation; the process must be restarted"
        elif away or disturbed or waiting:
            status, message = "degraded", f"problems: {', '.join(away + disturbed + waiting)}"
        return {
            "service": SERVICE,
            "status": status,
            "message": message,
            "version": __version__,
            "checks": {
                "service_responsive": True,
                "actors_recoverable": tree.healthy,
                "actors": {path: node.state for path, node in tree.iter_flat() if "/" not in path},
            },
            "dependencies": dependencies,
            "credentials": credentials,
            "definitions": self._definitions(),
            "waits": waits,
            "environment": self.settings.environment,
        }

    @serves(
        Route(
            method="GET",
            path="/readyz",
            name="readyz",
            group=Group.HEALTH,
            summary="Readiness: 503 while the service stops, or while neither Redis nor PostgreSQL can answer",
            answers={HTTPStatus.OK: service_answers.Ready},
            problems=("draining", "unavailable"),
            probe=True,
        )
    )
    async def readyz(self, _: web.Request) -> web.Response:
        """GET /readyz: 503 while draining, or while neither the state store nor the archive can answer."""
        if self.draining():
            raise draining()
        failure = failure_of_redis(self.redis, self.store)
        if failure is None or (self.archive and self.archive.can_answer_for_redis(failure)):
            ready: service_answers.Ready = {"status": "ready"}
            return reply_json(ready)
        raise Problem("unavailable", "the state store is out of reach")

    @serves(
        Route(
            method="GET",
            path="/metrics",
            name="metrics",
            group=Group.HEALTH,
            summary="The metrics in Prometheus' text format",
            answers={HTTPStatus.OK: CONTENT_TYPE_LATEST},
            probe=True,
        )
    )
    async def render(self, _: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(body=self.render_metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _problem_of_kafka(self) -> str:
        """The most specific known problem with Kafka; empty if there is none."""
        kafka = self.kafka
        if kafka.connected is False:
            return kafka.problem
        if kafka.connected is None:
            # Kafka may have refused a client of the publisher before any other client was connected.
            return self._refused_by_kafka() or kafka.problem
        return kafka.trouble or self._refused_by_kafka()

    def _refused_by_kafka(self) -> str:
        """The reason why Kafka refuses the intake or the publisher; empty if Kafka refuses neither."""
        waits = [*self.waits.of("intake"), *self.waits.of("publisher")]
        return "; ".join(wait.cause for wait in waits if wait.doing in (READ_KAFKA, CONNECT_PRODUCER))

    def _waiting_actors(self) -> list[str]:
        return [actor for actor in WAITING_ACTORS if self.archive or actor != "archive"]

    def _postgresql(self) -> service_answers.Dependency:
        if self.archive is None:
            unused = self.settings.database_url is not None
            reason = "BCS_USE_MOCK_REPOSITORY is set" if unused else "BCS_DATABASE_URL is not set"
            return {"status": "not_configured", "message": f"there is no archive ({reason})"}
        archive = self.archive.postgres
        problem = archive.shortage if archive.reachable else archive.problem
        return _dependency(not problem, problem, archive.address)

    def _credentials(self) -> dict[str, str]:
        """The files that can't be used now, and certificates that have expired."""
        return {
            each.variable: f"{each.problem}; what it had before stays in use" if each.outdated else each.problem
            for each in self.credentials
            if each.problem
        }

    def _definitions(self) -> definition_answers.DefinitionsInUse:
        active = self.definitions
        return {
            **definitions_version(active.current.definitions.identity),
            "loaded_at": rfc3339(active.loaded_at),
            "problem": active.problem or None,
        }

    def _redis(self) -> service_answers.Dependency:
        if self.settings.use_mock_repository:
            return {"status": "not_configured", "message": "the state is in memory (BCS_USE_MOCK_REPOSITORY)"}
        problem = problem_of_redis(self.redis, self.store)
        dependency = _dependency(not problem, problem, self.redis_address)
        if problem and self.store.partly_reachable and failure_of_redis(self.redis, self.store) is None:
            dependency["status"] = "degraded"
        return dependency


def _wait(wait: Wait) -> service_answers.Wait:
    return {"operation": wait.doing, "cause": wait.cause, "since": rfc3339(wait.since)}


def _dependency(up: bool, problem: str, address: str) -> service_answers.Dependency:
    if up:
        return {"status": "healthy", "message": "reachable"}
    return {"status": "unhealthy", "message": problem if address in problem else f"at {address}: {problem}"}
