"""Tries a commit several times, with exponential back-off and full jitter. All stores share this module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from bcs.errors import CommitConflict, SlotMoves
from bcs.storage.ports import Committed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """How often a commit is tried, and how long it waits in between.

    :param attempts: how many attempts there are in all.
    :param first_wait_seconds: the upper limit of the first wait; each further wait doubles it. Jitter is full, so that
        writers which conflicted once do not conflict again.
    :param longest_wait_seconds: the upper limit of any wait.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.005
    longest_wait_seconds: float = 0.1


async def persistently(
    policy: CommitPolicy, attempt: Callable[[], Awaitable[T]], may_end_soon: Callable[[BaseException], bool]
) -> T:
    """Try until an attempt succeeds, at most `policy.attempts` times.

    :param may_end_soon: True for a failure after which another attempt may succeed; others are raised at once.
    :raises Exception: the failure of the last attempt.
    """
    try:
        # Mostly the first attempt succeeds, and the setup of the retries would cost a tenth of the commit.
        return await attempt()
    except Exception as failure:
        if not may_end_soon(failure):
            raise
        failures = [failure]

    async def retry() -> T:
        if failures:
            raise failures.pop()  # the attempt above counts as the first one, and is followed by a wait
        return await attempt()

    retrying = AsyncRetrying(
        retry=retry_if_exception(may_end_soon),
        stop=stop_after_attempt(policy.attempts),
        wait=wait_random_exponential(multiplier=policy.first_wait_seconds, max=policy.longest_wait_seconds),
        sleep=anyio.sleep,
        reraise=True,
    )
    return await retrying(retry)


async def commit_with(
    policy: CommitPolicy, attempt: Callable[[], Awaitable[None]], fallback: Callable[[], Awaitable[None]]
) -> Committed:
    """Try a commit until an attempt has no conflict, at most `policy.attempts` times, then call the fallback.

    :param attempt: reads, merges and writes; raises CommitConflict or SlotMoves if nothing was written.
    :param fallback: does what no other writer can make fail.
    """
    conflicts = 0

    async def counted() -> None:
        nonlocal conflicts
        try:
            await attempt()
        except (CommitConflict, SlotMoves):
            conflicts += 1
            raise

    try:
        await persistently(policy, counted, _is_conflict)
    except (CommitConflict, SlotMoves):
        await fallback()
        return Committed(conflicts, fallback=True)
    return Committed(conflicts)


def _is_conflict(error: BaseException) -> bool:
    return isinstance(error, CommitConflict | SlotMoves)
