"""Limits the number of new batches of each caller: each leaves something in a store, though no event named it."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.domain.token_buckets import TokenBuckets
from bcs.errors import TooManyNewBatches
from bcs.observability.telemetry import NEW_BATCHES, Telemetry


@dataclass(frozen=True, slots=True)
class NewBatches:
    """The quotas of new batches. Requests about known batches use no quota.

    :param quotas: None for no limit.
    """

    quotas: TokenBuckets | None
    telemetry: Telemetry

    def use_quota(self, caller: str) -> None:
        """Use the quota of a caller that asks about a batch, or reports a batch, of which no fact is stored.

        :raises TooManyNewBatches: the quota is used up. The request must leave nothing behind.
        """
        wait_seconds = self.quotas.take(caller) if self.quotas is not None else 0.0
        if wait_seconds:
            self.telemetry.http_limited.labels(NEW_BATCHES).inc()
            raise TooManyNewBatches(wait_seconds)
