"""What a benchmark says: rows with figures, and the median of several rounds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One path, as measured; None where it does not apply.

    :param rate: operations a second.
    :param cpu_us: of the process measured, for one operation.
    :param redis_cpu_us: of Redis, for one operation; of a cluster, of all nodes together.
    :param redis_busiest_us: of the busiest node of Redis.
    :param postgres_cpu_us: of all processes of the record's database, for one operation.
    :param generator_cpu: the part of a core that the load took; near 1.0 the load is what limits.
    :param megabytes: resident memory of the process measured, afterwards.
    """

    path: str
    operations: int
    rate: float
    cpu_us: float
    redis_cpu_us: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    generator_cpu: float | None = None
    megabytes: float | None = None
    postgres_cpu_us: float | None = None
    redis_busiest_us: float | None = None


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """The percentiles of some times, by the names that they have in a `Measured`."""
    ordered = sorted(seconds)
    parts = (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for name, part in parts}


def middle(rounds: list[Measured]) -> Measured:
    """The median of every figure by itself."""
    figures: dict[str, Any] = {}
    for one in fields(Measured):
        if one.name != "path":
            values = [value for measured in rounds if (value := getattr(measured, one.name)) is not None]
            figures[one.name] = median(values) if values else None
    return replace(rounds[0], **figures)
