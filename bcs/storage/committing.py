"""Tries a commit optimistically, then by the fallback. All stores share this module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bcs.errors import CommitConflict
from bcs.storage.ports import Committed


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """How often a commit is tried, and how long it waits in between.

    :param attempts: how many optimistic attempts come before the fallback.
    :param first_wait_seconds: the upper limit of the first wait; each further wait doubles it. Jitter is full, so that
        writers which conflicted once do not conflict again.
    :param longest_wait_seconds: the upper limit of any wait.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.005
    longest_wait_seconds: float = 0.1


async def commit_with(
    policy: CommitPolicy, attempt: Callable[[], Awaitable[None]], fallback: Callable[[], Awaitable[None]]
) -> Committed:
    """Try a commit until an attempt has no conflict, at most `policy.attempts` times, then call the fallback.

    :param attempt: reads, merges and writes; raises CommitConflict if nothing was written because of another writer.
    :param fallback: merges each register alone, which no other writer can make fail.
    """
    try:
        # Mostly there is no conflict, and the setup of the retries would cost a tenth of the commit.
        await attempt()
    except CommitConflict as conflict:
        lost: list[CommitConflict] = [conflict]
    else:
        return Committed()

    async def retry() -> None:
        if lost:
            raise lost.pop()  # the attempt above counts as the first one, and is followed by a wait
        await attempt()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(CommitConflict),
        stop=stop_after_attempt(policy.attempts),
        wait=wait_random_exponential(multiplier=policy.first_wait_seconds, max=policy.longest_wait_seconds),
        sleep=anyio.sleep,
    )
    try:
        await retrying(retry)
    except RetryError:
        await fallback()
        return Committed(conflicts=policy.attempts, fallback=True)
    return Committed(conflicts=retrying.statistics["attempt_number"] - 1)
