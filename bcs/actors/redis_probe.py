"""Asks Redis for signs of life, and keeps what is known of it for those who must not wait for an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import anyio
import structlog

from bcs.errors import StoreUnavailable
from bcs.observability.logged_causes import LoggedCauses
from bcs.storage.ports import StateStore
from bcs.supervision import describe

log = structlog.stdlib.get_logger("bcs.redis")


@dataclass(slots=True, kw_only=True)
class RedisStatus:
    """What is known of Redis, for liveness and readiness. Written by the metrics actor, read by others.

    :param max_age_seconds: an older answer says nothing about now: the probe that should have renewed it stands still.
    :param clock: monotonic seconds.
    """

    max_age_seconds: float
    clock: Callable[[], float]
    _answered_at: float = field(default=-inf, init=False)
    _problem: str | None = field(default="it was not asked yet", init=False)
    _logged: LoggedCauses = field(default_factory=LoggedCauses, init=False)

    def up(self) -> None:
        """Redis answered."""
        if self._logged.clear():
            log.info("redis_probe_succeeded")
        self._answered_at, self._problem = self.clock(), None

    def down(self, problem: str) -> None:
        """Redis did not answer, or refused. Said once for each cause of an outage."""
        if self._logged.note(problem):
            log.warning("redis_probe_failed", problem=problem)
        self._problem = problem

    def ensure_up(self) -> None:
        """Refuse unless Redis is known to answer. Asks nobody.

        :raises StoreUnavailable: it is not.
        """
        if self._problem is not None:
            raise StoreUnavailable("redis", self._problem)
        age_seconds = self.clock() - self._answered_at
        if age_seconds > self.max_age_seconds:
            raise StoreUnavailable("redis", f"its last known answer is {age_seconds:.0f} s old")


def problem_of_redis(status: RedisStatus, store: StateStore) -> str:
    """Why Redis counts as away, or what it refuses; empty where that is nothing. Asks nobody."""
    failure = failure_of_redis(status, store)
    return failure.cause if failure else store.problem


def failure_of_redis(status: RedisStatus, store: StateStore) -> StoreUnavailable | None:
    """Why Redis counts as away. What requests have found since the last look counts, too. Asks nobody."""
    try:
        status.ensure_up()
        store.ensure_reachable()
    except StoreUnavailable as failure:
        return failure
    return None


async def probe_redis(
    store: StateStore, status: RedisStatus, interval_seconds: float, probed: Callable[[], object]
) -> None:
    """Keep the status up to date until cancelled.

    :param probed: is called after each look.
    """
    while True:
        try:
            await store.ping()
        except StoreUnavailable as error:
            status.down(error.cause)
        except Exception as error:  # noqa: BLE001 (a look that can't be made has failed; to die of it would help nobody)
            status.down(describe(error))
        else:
            status.up()
        probed()
        await anyio.sleep(interval_seconds)
