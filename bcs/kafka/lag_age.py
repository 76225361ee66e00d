"""Estimates for how long events have waited to be read, from repeated measurements of the offsets."""

from __future__ import annotations

from dataclasses import dataclass, field

from bcs.kafka.offsets import Offsets

# Of each partition; with more, every second one is dropped, and later ones are kept further apart.
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
class _Ends:
    """The ends of one partition that the group has not reached, each with the time when it was measured.

    :param spacing_ms: the time between two that are kept, at least.
    """

    measured: list[tuple[int, int]] = field(default_factory=list)
    spacing_ms: int = 0

    def add(self, at_ms: int, end: int) -> None:
        measured = self.measured
        if measured and (end <= measured[-1][1] or at_ms < measured[-1][0] + self.spacing_ms):
            return
        measured.append((at_ms, end))
        if len(measured) > _MOST_ENDS:
            del measured[1::2]
            self.spacing_ms = (measured[-1][0] - measured[0][0]) // len(measured)


@dataclass(slots=True)
class LagAge:
    """Keeps the ends of each partition that the group has not reached.

    An event that was there at a measurement, and that is not committed now, has waited at least since then.
    """

    _ends: dict[Key, _Ends] = field(default_factory=dict)

    def note(self, key: Key, offsets: Offsets, lag: int, now_ms: int) -> None:
        """Take over a measurement.

        :param lag: how many events of the partition wait.
        """
        at_ms, ends = now_ms, self._ends.get(key)
        if ends is None:
            ends = self._ends[key] = _Ends()
            if offsets.note.written_ms is not None:
                # Nothing is known from before this process. No waiting event is older than the last one that was read.
                at_ms = min(now_ms, offsets.note.written_ms)
        reached = offsets.end - lag
        ends.measured[:] = [(measured_ms, end) for measured_ms, end in ends.measured if end > reached]
        if not ends.measured:
            ends.spacing_ms = 0
        if lag:
            ends.add(at_ms, offsets.end)

    def oldest_ms(self) -> int | None:
        """Since when the oldest waiting event has waited, in milliseconds since 1970 UTC; None if none waits."""
        return min((ends.measured[0][0] for ends in self._ends.values() if ends.measured), default=None)
