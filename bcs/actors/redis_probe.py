"""Probes Redis, and stores the result for readers that must not wait for an answer."""

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
    """The last result of a probe of Redis, for liveness and readiness. The metrics actor writes it.

    :param max_age_seconds: an older result is not valid, because the probe that should have replaced it hangs.
    :param clock: monotonic seconds.
    """

    max_age_seconds: float
    clock: Callable[[], float]
    _answered_at: float = field(default=-inf, init=False)
    _problem: str | None = field(default="no probe has ended yet", init=False)
    _logged: LoggedCauses = field(default_factory=LoggedCauses, init=False)

    def up(self) -> None:
        """Store that Redis answered."""
        if self._logged.clear():
            log.info("redis_probe_succeeded")
        self._answered_at, self._problem = self.clock(), None

    def down(self, problem: str) -> None:
        """Store that Redis did not answer, or refused. Each cause of an outage is logged once."""
        if self._logged.note(problem):
            log.warning("redis_probe_failed", problem=problem)
        self._problem = problem

    def ensure_up(self) -> None:
        """Refuse unless Redis is known to answer. Makes no request.

        :raises StoreUnavailable: Redis is not known to answer.
        """
        if self._problem is not None:
            raise StoreUnavailable("redis", self._problem)
        age_seconds = self.clock() - self._answered_at
        if age_seconds > self.max_age_seconds:
            raise StoreUnavailable("redis", f"the last answer is {age_seconds:.0f} s old")


def problem_of_redis(status: RedisStatus, store: StateStore) -> str:
    """Why Redis counts as unreachable, or what it refuses; empty if there is no problem. Makes no request."""
    failure = failure_of_redis(status, store)
    return failure.cause if failure else store.problem


def failure_of_redis(status: RedisStatus, store: StateStore) -> StoreUnavailable | None:
    """Why Redis counts as unreachable, by the last probe and later requests; None if it does not. Makes no request."""
    try:
        status.ensure_up()
        store.ensure_reachable()
    except StoreUnavailable as failure:
        return failure
    return None


async def probe_redis(
    store: StateStore, status: RedisStatus, interval_seconds: float, probed: Callable[[], object]
) -> None:
    """Update the status until cancelled.

    :param probed: called after each probe.
    """
    while True:
        try:
            await store.ping()
        except StoreUnavailable as error:
            status.down(error.cause)
        except Exception as error:  # noqa: BLE001 (any error is a failed probe; a crash would not help)
            status.down(describe(error))
        else:
            status.up()
        probed()
        await anyio.sleep(interval_seconds)
