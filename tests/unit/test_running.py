"""A command ends with its coroutine, whatever hangs in threads, and by a signal."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from bcs.runtime.running import call_with_timeout, run
from bcs.runtime.signals import release, stop_signals


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


class _SignalledAtItsEnd:
    """A context manager that gets a signal when its end has begun, and is not waited for yet."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.has_ended = False

    async def __aenter__(self) -> None: ...

    def __aexit__(self, *_: object) -> Coroutine[Any, Any, None]:
        end = self._end()
        signal.raise_signal(self.number)
        return end

    async def _end(self) -> None:
        self.has_ended = True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_between_two_steps_and_not_within_one(number: signal.Signals) -> None:
    context = _SignalledAtItsEnd(number)

    async def command() -> None:
        async with context:
            pass
        await anyio.sleep_forever()

    with signals_end_the_command(), pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == 128 + number
    assert context.has_ended


def test_a_second_signal_ends_a_command_that_does_not_end_by_the_first() -> None:
    async def command() -> None:
        with anyio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGTERM)
            await checkpoint()
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()

    with signals_end_the_command(), pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_command_that_ends_in_spite_of_a_signal_has_its_result_left_out() -> None:
    async def command() -> str:
        signal.raise_signal(signal.SIGTERM)
        return "done"

    with signals_end_the_command(), pytest.raises(SystemExit):
        run(command)


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """Handles signals as while a command runs."""
    before = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        release()
        handlers = {number: signal.getsignal(number) for number in before}
        yield
        assert {number: signal.getsignal(number) for number in before} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
