"""A command's result comes when its coroutine has ended, whatever hangs in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import anyio
import pytest

from bcs.runtime.running import call_with_timeout, run


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """Blocks a thread like a silent name service, until the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_lookup_that_hangs_holds_up_no_result(silence: threading.Event) -> None:
    async def command() -> str:
        lookup = asyncio.get_running_loop().run_in_executor(None, silence.wait)
        with anyio.move_on_after(0.01):
            await lookup
        return "done"

    assert run(command) == "done"
    assert not silence.is_set()


def test_lookups_wait_for_no_other_lookup(silence: threading.Event) -> None:
    async def command() -> list[str]:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            loop.run_in_executor(None, silence.wait)
        return [await loop.run_in_executor(None, "quick".upper)]

    assert run(command) == ["QUICK"]


def test_results_and_errors_come_out_of_the_thread() -> None:
    def fails() -> None:
        raise LookupError("no such name")

    async def command() -> None:
        await asyncio.get_running_loop().run_in_executor(None, fails)

    with pytest.raises(LookupError, match="no such name"):
        run(command)


def test_what_blocks_is_left_to_itself_after_its_time(silence: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        call_with_timeout(silence.wait, 0.01)
    assert call_with_timeout(lambda: 7, 5) == 7
