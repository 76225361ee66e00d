"""Token buckets: how many things each caller may do in a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MOST_BUCKETS = 10_000
"""The largest number of buckets in memory: about 3 MB."""

_SECOND_NS = 1_000_000_000
# How many full buckets are dropped at most when a new one is made: more than one, so that their number falls.
_DROPPED_AT_A_TIME = 2


class TokenBuckets:
    """A token bucket for each caller. A bucket that nobody has used is full.

    The number of buckets is bounded. If there are too many, the bucket that has been unused longest is dropped, and its
    caller begins with a full bucket again. So a crowd of callers never takes tokens from others.

    :param per_second: how many tokens a bucket gains in a second.
    :param burst: how many tokens a full bucket has; at least 1.
    :param clock_ns: monotonic time in nanoseconds.
    :param most: the largest number of buckets.
    """

    def __init__(self, *, per_second: float, burst: int, clock_ns: Callable[[], int], most: int = MOST_BUCKETS) -> None:
        self._token_ns = max(1, round(_SECOND_NS / per_second))
        self._burst_ns = burst * self._token_ns
        self._clock_ns = clock_ns
        self._most = most
        # A bucket is the time at which it will be full. The buckets are in the order of their last use.
        self._full_at_ns: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def take(self, caller: str) -> float:
        """Take a token of a caller.

        :returns: 0 if there was a token; else the seconds until there is one.
        """
        now = self._clock_ns()
        buckets = self._full_at_ns
        full_at = buckets.get(caller, 0)
        if full_at:
            buckets.move_to_end(caller)
        else:
            self._make_room(now)
        full_at = max(full_at, now) + self._token_ns
        wait = full_at - now - self._burst_ns
        if wait > 0:
            return wait / _SECOND_NS
        buckets[caller] = full_at
        return 0.0

    def _make_room(self, now: int) -> None:
        buckets = self._full_at_ns
        for _ in range(_DROPPED_AT_A_TIME):
            if not buckets or (next(iter(buckets.values())) > now and len(buckets) < self._most):
                return
            buckets.popitem(last=False)
