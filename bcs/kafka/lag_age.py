"""Estimates for how long events have waited to be read, from repeated measurements of the offsets."""

from __future__ import annotations

from dataclasses import dataclass, field

from bcs.kafka.offsets import Offsets

# Of each partition; with more, every second one is dropped.
_MOST_ENDS = 64

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class IntakeLag:
    """How far the intake of all replicas was behind.

    :param events: how many events waited; None before the first measurement.
    :param seconds: for how long the oldest of them had waited, about; None before the first measurement.
    :param measured_ms: when that was measured last, in milliseconds since 1970 UTC.
    """

    events: int | None
    seconds: float | None
    measured_ms: int | None


@dataclass(slots=True)
class LagAge:
    """Keeps the ends of each partition that the group has not reached, with the time when each was measured.

    An event that was there at a measurement, and that is not committed now, has waited at least since then.
    """

    _ends: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)

    def note(self, key: Key, offsets: Offsets, lag: int, now_ms: int) -> None:
        """Take over a measurement.

        :param lag: how many events of the partition wait.
        """
        first_time = key not in self._ends
        ends = self._ends.setdefault(key, [])
        reached = offsets.end - lag
        ends[:] = [(at_ms, end) for at_ms, end in ends if end > reached]
        if not lag or (ends and ends[-1][1] >= offsets.end):
            return
        at_ms = now_ms
        if first_time and offsets.note.written_ms is not None:
            # Nothing is known from before this process. No waiting event is older than the last one that was read.
            at_ms = min(now_ms, offsets.note.written_ms)
        ends.append((at_ms, offsets.end))
        if len(ends) > _MOST_ENDS:
            del ends[1::2]

    def oldest_ms(self) -> int | None:
        """Since when the oldest waiting event has waited, in milliseconds since 1970 UTC; None if none waits."""
        return min((ends[0][0] for ends in self._ends.values() if ends), default=None)
