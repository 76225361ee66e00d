"""Waiting for a condition."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

import anyio

T = TypeVar("T")

# So long that it only ever tells that something hangs: a machine that has much to do may take many seconds.
PATIENCE_SECONDS = 60.0
# A condition is often a request to a service, which takes milliseconds: what takes longer is asked for less often.
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.01, 0.05
_POLL_OF_WAITED = 0.1


@overload
async def wait_until(
    condition: Callable[[], Awaitable[T]],
    timeout_seconds: float = ...,
    *,
    description: str | None = ...,
    ignoring: tuple[type[Exception], ...] = ...,
) -> T: ...
@overload
async def wait_until(
    condition: Callable[[], T],
    timeout_seconds: float = ...,
    *,
    description: str | None = ...,
    ignoring: tuple[type[Exception], ...] = ...,
) -> T: ...
async def wait_until(
    condition: Callable[[], Awaitable[T] | T],
    timeout_seconds: float = PATIENCE_SECONDS,
    *,
    description: str | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> T:
    """Ask until the answer is truthy, and return it; a condition that hangs is cancelled at the timeout.

    An exception of a type in ``ignoring`` counts as a falsy answer: "until it can be reached again". On timeout an
    ``AssertionError`` tells the description and the last answer.
    """
    last: object = "no answer"
    began = time.monotonic()
    with anyio.move_on_after(timeout_seconds):
        while True:
            try:
                answer = condition()
                value = cast("T", await answer if inspect.isawaitable(answer) else answer)
            except ignoring as error:
                last = error
            else:
                if value:
                    return value
                last = value
            waited = time.monotonic() - began
            if waited > timeout_seconds:
                break
            pause = min(waited * _POLL_OF_WAITED, _LONGEST_POLL_SECONDS)
            # An event would be better than polling, but what is observed here lives outside of this process.
            await anyio.sleep(max(pause, _SHORTEST_POLL_SECONDS))
    raise AssertionError(f"not within {timeout_seconds} s: {description or _source(condition)}; last: {last!r}")


def _source(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # typed in, or a partial
        return repr(condition)
