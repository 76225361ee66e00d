"""Probes: is the process worth keeping, may it get traffic, and what do the metrics say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from bcs import __version__
from bcs.actors.asking import ask_again
from bcs.actors.http.problems import Problem
from bcs.actors.http.replies import reply_json
from bcs.actors.kafka import KafkaStatus
from bcs.actors.messages import RenderMetrics
from bcs.contracts.published import SERVICE
from bcs.domain.errors import StoreUnavailable
from bcs.record.permanent import Permanent
from bcs.settings import Settings
from bcs.store.base import StateStore
from bcs.supervision import Mailbox, Snapshot, State

# States of an actor in which its callers wait for it.
_DISTURBED = frozenset({State.BACKING_OFF, State.STARTING, State.WEDGED, State.ENDED})


@dataclass(frozen=True, slots=True)
class Probes:
    """Handlers with what they need.

    :param permanent: None where there is no record.
    :param snapshot: a picture of the supervision tree.
    :param draining: whether a stop was asked for.
    """

    settings: Settings
    store: StateStore
    permanent: Permanent | None
    kafka: KafkaStatus
    metrics: Mailbox[RenderMetrics]
    snapshot: Callable[[], Snapshot]
    draining: Callable[[], bool]

    async def healthz(self, _: web.Request) -> web.Response:
        """GET /healthz: liveness. A dependency that is away is no reason to restart this process."""
        tree = self.snapshot()
        redis = await self._redis()
        kafka = _dependency(self.kafka.connected, self.kafka.problem)
        if kafka["status"] == "healthy" and self.kafka.trouble is not None:
            kafka = _dependency(False, self.kafka.trouble)
        postgresql = self._postgresql()
        disturbed = [path for path, node in tree.iter_flat() if node.state in _DISTURBED and "/" not in path]
        dependencies = {"redis": redis, "kafka": kafka, "postgresql": postgresql}
        away = [name for name, state in dependencies.items() if state["status"] == "unhealthy"]
        status, message = "healthy", "all actors run and all dependencies answer"
        if not tree.healthy:
            status, message = "unhealthy", "an actor ignores its cancellation; only a new process helps"
        elif away or disturbed:
            status, message = "degraded", f"not in order: {', '.join(away + disturbed)}"
        document = {
            "service": SERVICE,
            "status": status,
            "message": message,
            "version": __version__,
            "checks": {
                "service_responsive": True,
                "actors_recoverable": tree.healthy,
                "actors": {path: node.state.value for path, node in tree.iter_flat() if "/" not in path},
            },
            "dependencies": dependencies,
            "environment": self.settings.environment.value,
        }
        return reply_json(document, HTTPStatus.OK if tree.healthy else HTTPStatus.SERVICE_UNAVAILABLE)

    async def readyz(self, _: web.Request) -> web.Response:
        """GET /readyz: 503 while draining, or while neither the state store nor the record can answer."""
        if self.draining():
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "draining", "the service is stopping", retry=True)
        try:
            await self.store.ping()
        except StoreUnavailable as error:
            if self.permanent and self.permanent.stands_in(error):
                return reply_json({"status": "ready"})
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "the state store is out of reach", retry=True
            ) from None
        return reply_json({"status": "ready"})

    async def render(self, _: web.Request) -> web.Response:
        """GET /metrics."""
        text = await ask_again(lambda: self.metrics.ask(RenderMetrics, self.settings.request_deadline_seconds))
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _postgresql(self) -> dict[str, str]:
        if self.permanent is None:
            unused = self.settings.database_url is not None
            reason = "BCS_USE_MOCK_REPOSITORY is set" if unused else "BCS_DATABASE_URL is not set"
            return {"status": "not_configured", "message": f"no permanent record is kept ({reason})"}
        return _dependency(self.permanent.record.reachable, self.permanent.record.problem)

    async def _redis(self) -> dict[str, str]:
        if self.settings.use_mock_repository:
            return {"status": "not_configured", "message": "state is kept in memory (BCS_USE_MOCK_REPOSITORY)"}
        try:
            await self.store.ping()
        except StoreUnavailable as error:
            return _dependency(False, error.cause)
        return _dependency(not self.store.problem, self.store.problem)


def _dependency(up: bool | None, problem: str) -> dict[str, str]:
    return {"status": "healthy", "message": "it answers"} if up else {"status": "unhealthy", "message": problem}
