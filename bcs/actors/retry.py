"""Retries calls to a dependency inside the actor, because an outage must not use up the restart budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from bcs.observability.waits import Waits
from bcs.supervision import ActorContext

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.05


async def retry(
    context: ActorContext[Any],
    do: Callable[[], Awaitable[T]],
    *errors: type[Exception],
    waits: Waits,
    actor: str,
    doing: str,
    maximum_seconds: float,
) -> T:
    """Call until the call succeeds, with exponential back-off and full jitter. Each retry is a heartbeat of the actor.

    After a stop was requested, the next error is raised. Cancellation takes effect between two attempts, or inside an
    attempt as the call defines.

    :param do: the call.
    :param errors: the errors after which the call is retried; any other error is raised.
    :param waits: gets each failed attempt, and the end.
    :param actor: the actor's name, without a batch's id.
    :param doing: the call in words that follow "waits to".
    :param maximum_seconds: the longest wait between two attempts.
    """
    holder = object()

    def before_sleep(state: RetryCallState) -> None:
        context.heartbeat()
        context.give_turn()  # what this actor waits for may be a matter of its own message only
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
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        outcome: T = await retrying(do)
    finally:
        waits.end(actor, doing, holder=holder)
    return outcome
