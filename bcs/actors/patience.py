"""Waiting for a dependency that is away: inside the actor, since an outage must not use up the restart budget."""

from __future__ import annotations

from typing import Any

import anyio
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bcs.supervision import ActorContext

log = structlog.stdlib.get_logger("bcs.patience")

FIRST_WAIT_SECONDS = 0.05


def patiently(
    context: ActorContext[Any],
    *errors: type[Exception],
    maximum_seconds: float,
    doing: str,
    until_stop: bool = False,
) -> AsyncRetrying:
    """Retries without end, with exponential back-off and full jitter; every try counts as progress of the actor.

    Cancellation ends it between two tries, or as the tried call itself defines.

    :param errors: what is worth another try; anything else is raised.
    :param maximum_seconds: the longest wait between two tries.
    :param doing: what is being tried, for the log.
    :param until_stop: once a stop is asked for, raise the next error instead of going on.
    """

    def note(state: RetryCallState) -> None:
        context.beat()
        if state.attempt_number == 1:
            # The store and Kafka announce their outages themselves; this may come from thousands of batches at once.
            error = state.outcome.exception() if state.outcome else None
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
