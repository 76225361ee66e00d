"""How a commit is tried: optimistically, then by the fallback. The same for every store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bcs.errors import CommitConflict
from bcs.storage.ports import Committed


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """How often and how patiently a commit is tried.

    :param attempts: optimistic attempts before the fallback.
    :param first_wait_seconds: the upper end of the first wait; each further one doubles it. Jitter is full, so that
        writers who met once do not meet again.
    :param longest_wait_seconds: the upper end of any wait.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.005
    longest_wait_seconds: float = 0.1


async def commit_with(
    policy: CommitPolicy, attempt: Callable[[], Awaitable[None]], fallback: Callable[[], Awaitable[None]]
) -> Committed:
    """Try a commit until it succeeds without a conflict, at most so many times, then fall back.

    :param attempt: reads, merges and writes, or raises CommitConflict having written nothing.
    :param fallback: merges each register on its own, which no other writer can make fail.
    """
    try:
        # Mostly there is no rival; to set up the retries would then cost a tenth of the commit.
        await attempt()
    except CommitConflict as conflict:
        lost: list[CommitConflict] = [conflict]
    else:
        return Committed()

    async def again() -> None:
        if lost:
            raise lost.pop()  # the attempt that was made already is the first of them, and is waited after
        await attempt()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(CommitConflict),
        stop=stop_after_attempt(policy.attempts),
        wait=wait_random_exponential(multiplier=policy.first_wait_seconds, max=policy.longest_wait_seconds),
        sleep=anyio.sleep,
    )
    try:
        await retrying(again)
    except RetryError:
        await fallback()
        return Committed(conflicts=policy.attempts, fallback=True)
    return Committed(conflicts=retrying.statistics["attempt_number"] - 1)
