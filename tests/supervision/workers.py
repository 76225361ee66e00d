"""A dynamic supervisor to test with."""

from __future__ import annotations

from typing import Any

import anyio

from bcs.supervision import (
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    Boom,
    Context,
    Question,
    Recorder,
)


class Workers:
    """Children that note what they get; "poison" crashes them, and a held key waits for its gate."""

    def __init__(self, **options: Any) -> None:
        self.got: list[tuple[str, Any]] = []
        self.given_up: list[Any] = []
        self.gates: dict[str, anyio.Event] = {}
        self.observer = Recorder()
        settings = {"mailbox_capacity": 3, "max_children": 100, "backoff": AT_ONCE, "intensity": OFTEN, **options}
        self.supervisor: DynamicSupervisor[Any] = DynamicSupervisor("workers", self.start, **settings)
        self.root = Supervisor(
            "root", [ChildSpec("workers", self.supervisor.run)], backoff=AT_ONCE, observer=self.observer
        )

    async def start(self, context: Context) -> None:
        async def handle(envelopes: list[Envelope[Any]]) -> None:
            if context.name in self.gates:
                await self.gates[context.name].wait()
            for envelope in envelopes:
                if envelope.message == "poison":
                    raise Boom
                if isinstance(envelope.message, Question):
                    envelope.message.reply.send(context.name)
                self.got.append((context.name, envelope.message))

        await serve_until_empty(context, handle, limit=10, on_max_deliveries=self.on_max_deliveries)

    async def on_max_deliveries(self, envelope: Envelope[Any]) -> None:
        self.given_up.append(envelope.message)

    @property
    def alive(self) -> int:
        return self.supervisor.snapshot().total_children

    def hold(self, *keys: str) -> None:
        for key in keys:
            self.gates[key] = anyio.Event()

    def release(self) -> None:
        for gate in self.gates.values():
            gate.set()
