"""Holds answers of a service that runs in a thread."""

from __future__ import annotations

import anyio

from bcs.observability.failpoints import FailPoint


class HeldAnswers:
    """Holds the answer to each request that has pruned a phase, until it is let go."""

    def __init__(self) -> None:
        self.let_go = anyio.Event()  # on the service's event loop

    async def reach(self, point: FailPoint, _: str) -> None:
        """See `bcs.observability.failpoints.FailPointHook`."""
        if point is FailPoint.HTTP_BEFORE_REPLY:
            await self.let_go.wait()
