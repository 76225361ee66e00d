"""A collector: takes spans by OTLP over HTTP, and can be slow or away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import anyio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bcs.devtools.servers.embedded import free_port
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    links: Sequence[str]
    attributes: dict[str, Any]
    instance: str


class Collector:
    """Listens on a port that stays the same while it is away.

    :ivar delay_seconds: how long it waits before it answers.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0
        self.spans: list[ReceivedSpan] = []
        self.requests = 0
        self._runner: web.AppRunner | None = None

    @property
    def environment(self) -> dict[str, object]:
        """The variables with which a service sends its spans here, each soon."""
        return {
            "BCS_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": 100,
        }

    async def __aenter__(self) -> Self:
        await self.come()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def come(self) -> None:
        """Begin to listen."""
        application = web.Application()
        application.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def leave(self) -> None:
        """Close all connections, and refuse further ones."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def named(self, name: str, **attributes: object) -> list[ReceivedSpan]:
        """Those with a name and with attributes, the dots in whose names are two underscores."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [span for span in self.spans if span.name == name and wanted.items() <= span.attributes.items()]

    async def wait_for(self, name: str, **attributes: object) -> ReceivedSpan:
        """The newest of them, once there is one."""
        await wait_until(lambda: self.named(name, **attributes))
        return self.named(name, **attributes)[-1]

    async def _take(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        # A collector that is slow.
        await anyio.sleep(self.delay_seconds)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            instance = _values(resource.resource.attributes)["service.instance.id"]
            for scope in resource.scope_spans:
                self.spans += [_received(span, instance) for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def _received(span: Any, instance: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        [link.span_id.hex() for link in span.links],
        _values(span.attributes),
        instance,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
