"""Waiting for a dependency that is away: inside the actor, since an outage must not use up the restart budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bcs.supervision import ActorContext

T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.patience")

FIRST_WAIT_SECONDS = 0.05
# Causes that differ only in a number must not fill the log.
_CAUSES = 5


def patiently(
    context: ActorContext[Any],
    *errors: type[Exception],
    maximum_seconds: float,
    doing: str,
    until_stop: bool = False,
    say: Callable[[str], None] | None = None,
) -> AsyncRetrying:
    """Retries without end, with exponential back-off and full jitter; every try counts as progress of the actor.

    Cancellation ends it between two tries, or as the tried call itself defines.

    :param errors: what is worth another try; anything else is raised.
    :param maximum_seconds: the longest wait between two tries.
    :param doing: what is being tried, for the log.
    :param until_stop: once a stop is asked for, raise the next error instead of going on.
    :param say: is told why, after each try that failed.
    """

    def note(state: RetryCallState) -> None:
        context.beat()
        error = state.outcome.exception() if state.outcome else None
        if say:
            say(str(error))
        elif state.attempt_number == 1:
            # The store and Kafka announce their outages themselves; this may come from thousands of batches at once.
            log.debug("waiting_for_dependency", actor=context.name, doing=doing, error=str(error))

    async def sleep(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await (context.wait_stopping() if until_stop else anyio.sleep_forever())

    return AsyncRetrying(
        retry=retry_if_exception_type(errors),
        stop=(lambda _: context.stopping) if until_stop else stop_never,
        wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=maximum_seconds),
        sleep=sleep,
        before_sleep=note,
        reraise=True,
    )


async def patiently_and_aloud(
    context: ActorContext[Any],
    do: Callable[[], Awaitable[T]],
    *errors: type[Exception],
    maximum_seconds: float,
    doing: str,
) -> T:
    """Do something as `patiently` does until a stop; and say why it waits, once for each cause, and that it goes on.

    For an actor of which there is only one.
    """
    causes: set[str] = set()

    def say(cause: str) -> None:
        if cause not in causes and len(causes) < _CAUSES:
            causes.add(cause)
            log.warning("waiting_for_dependency", actor=context.name, doing=doing, error=cause)

    retrying = patiently(context, *errors, maximum_seconds=maximum_seconds, doing=doing, until_stop=True, say=say)
    outcome: T = await retrying(do)
    if causes:
        log.info("waited_for_dependency", actor=context.name, doing=doing)
    return outcome
