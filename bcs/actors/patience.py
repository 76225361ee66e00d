"""Waiting for a dependency that is away: inside the actor, since an outage must not use up the restart budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from bcs.observability.waits import Waits
from bcs.supervision import ActorContext

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.05


async def patiently(
    context: ActorContext[Any],
    do: Callable[[], Awaitable[T]],
    *errors: type[Exception],
    waits: Waits,
    actor: str,
    doing: str,
    maximum_seconds: float,
) -> T:
    """Try until it succeeds, with exponential back-off and full jitter; every try counts as progress of the actor.

    Once a stop is asked for, the next error is raised. Cancellation ends it between two tries, or as the tried call
    itself defines.

    :param errors: what is worth another try; anything else is raised.
    :param waits: is told of each try that failed, and of the end.
    :param actor: whose wait this is, without a batch's id.
    :param doing: what is being tried, in words that follow "waits to".
    :param maximum_seconds: the longest wait between two tries.
    """
    holder = object()

    def note(state: RetryCallState) -> None:
        context.heartbeat()
        if state.outcome:
            waits.begin(actor, doing, str(state.outcome.exception()), holder=holder)

    async def sleep(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await context.wait_stopping()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(errors),
        stop=lambda _: context.stopping,
        wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=maximum_seconds),
        sleep=sleep,
        before_sleep=note,
        reraise=True,
    )
    try:
        outcome: T = await retrying(do)
    finally:
        waits.end(actor, doing, holder=holder)
    return outcome
