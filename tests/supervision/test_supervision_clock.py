"""The loop's clock tells anyio's time, whichever loop runs."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision.clock import LoopClock

pytestmark = pytest.mark.anyio


async def test_the_loop_clock_returns_the_time_of_anyio() -> None:
    clock = LoopClock()
    for _ in range(3):
        before = anyio.current_time()
        told = clock()
        assert before <= told <= anyio.current_time()
        # Time has to pass for the clock to show it.
        await anyio.sleep(0.001)
