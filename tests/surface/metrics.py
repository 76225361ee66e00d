"""The metrics: names, types, labels, help, and the series that are there from the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import Histogram, MetricWrapperBase

_OURS = "bcs_"
_NOT_TOLD = ("bcs_http_", "bcs_kafka_committed_timestamp_seconds")


def facts_of_metrics(registry: CollectorRegistry) -> list[str]:
    """A line for each fact. What the client's own collectors tell of the process depends on the platform."""
    lines = []
    for collector in set(registry._collector_to_names):
        if not isinstance(collector, MetricWrapperBase):
            lines.append(f"also those of the client's {type(collector).__name__}")
            continue
        [described] = collector.describe()
        name = f"{described.name}_total" if described.type == "counter" else described.name
        lines.append(f"{name}: {described.type}")
        lines.append(f"{name}: help: {described.documentation}")
        lines += [f"{name}: label {label}" for label in collector._labelnames]
        if isinstance(collector, Histogram):
            lines.append(f"{name}: buckets {', '.join(map(str, collector._kwargs['buckets']))}")
    return sorted([*lines, *_series(registry)])


def facts_of_series(samples: Iterable[tuple[str, dict[str, str], float]]) -> list[str]:
    """The series that a running service has shown in the end, without values: what its labels can say.

    Those about calls over HTTP tell only which were made, and one needs what the embedded broker does not keep.
    """
    lines = set()
    for name, labels, _ in samples:
        if name.startswith(_OURS) and not name.startswith(_NOT_TOLD):
            said = {label: value for label, value in labels.items() if label != "partition"}
            lines.add(f"{name}: {_said(said)}")
    return sorted(lines)


def _said(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "no labels"


def _series(registry: CollectorRegistry) -> list[str]:
    """Those with labels that a registry has by now, without values."""
    return [
        f"{sample.name}: from the start {_said(sample.labels)}"
        for family in registry.collect()
        if family.name.startswith(_OURS)
        for sample in family.samples
        if sample.labels
    ]
