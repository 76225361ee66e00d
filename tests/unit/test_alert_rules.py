"""The alert rules read series and labels that BCS has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bcs.observability.telemetry import Telemetry

RULES = Path(__file__).parent.parent.parent / "config" / "prometheus-rules.yml"
# What Prometheus adds to each series, and to the buckets of a histogram.
ADDED = {"instance", "job", "le"}


def rules() -> list[dict[str, Any]]:
    document: dict[str, Any] = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def labels_of(series: str) -> set[str]:
    """The labels that a series of BCS has."""
    [metric] = [
        metric
        for metric, names in Telemetry().registry._collector_to_names.items()
        if series in names and hasattr(metric, "_labelnames")
    ]
    return set(metric._labelnames)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_reads_series_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    expression, summary = rule["expr"], rule["annotations"]["summary"]
    series = re.findall(r"\bbcs_\w+", expression)
    assert series
    known = set.intersection(*map(labels_of, series)) | ADDED
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    matched = re.findall(r"(\w+)=~?\"", expression)
    assert {label.strip() for group in grouped for label in group.split(",")} | set(matched) <= known
    told = set(re.findall(r"\$labels\.(\w+)", summary))
    kept = {label.strip() for group in grouped for label in group.split(",")} if grouped else known
    assert told <= kept
