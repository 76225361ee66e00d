"""The rules read series and labels that BCS has; each alert has a test and a page of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bcs.observability.telemetry import Telemetry
from tests.support.alert_stories import STORIES, all_rules
from tests.support.documented import anchors

ROOT = Path(__file__).parents[2]
# What Prometheus adds to each series, and to the buckets of a histogram.
ADDED = {"instance", "job", "le"}
OF_PROMETHEUS = {"up": ADDED, "process_start_time_seconds": ADDED}
SEVERITIES = {"critical", "warning", "info"}

RULES = all_rules()
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
LABELS: dict[str, set[str]] = {
    series: set(metric._labelnames)
    for metric, names in Telemetry().registry._collector_to_names.items()
    if hasattr(metric, "_labelnames")
    for series in names
}


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def labels_of(expression: str) -> set[str]:
    """The labels that all series of an expression have."""
    read = re.findall(r"\b(?:bcs_\w+|up|process_start_time_seconds)\b(?=[{\[) =])", expression)
    known = [OF_PROMETHEUS.get(series) or LABELS[series] | ADDED for series in read]
    assert known or re.findall(r"\bbcs:[\w:]+", expression)
    return set.intersection(*known) if known else set()


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_reads_series_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    expression, texts = rule["expr"], " ".join(rule.get("annotations", {}).values())
    assert set(re.findall(r"\bbcs:[\w:]+", expression)) <= RECORDED
    known = labels_of(expression)
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    matched = re.findall(r"(\w+)(?:=|!=|=~|!~)\"", expression)
    assert {label.strip() for group in grouped for label in group.split(",")} | set(matched) <= known
    named = set(re.findall(r"\$labels\.(\w+)", texts))
    aggregated = "sum(" in expression or "max(" in expression or "count(" in expression
    kept = {label.strip() for group in grouped for label in group.split(",")} if grouped else set()
    assert named <= (kept if grouped or aggregated else known)


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    texts = rule["annotations"]
    assert texts.keys() == {"summary", "description", "runbook_url"}
    assert all(text.strip() for text in texts.values())
    page, _, anchor = texts["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / page)


def test_every_alert_has_a_story_and_every_story_an_alert() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(names) == len(set(names)) > 30
    assert {story.alert for story in STORIES} - {""} == set(names)
    assert {alert for story in STORIES for alert in story.silent} <= set(names)


def test_each_page_section_is_about_an_alert() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/runbooks/alerts.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_a_page_section_says_how_long_the_alert_waits(rule: dict[str, Any]) -> None:
    waits = re.sub(r"m$", "min", rule.get("for", ""))
    when = re.sub(r"(\d+)(\w+)", r"after \1 \2", waits) or "at once"
    _, _, section = (ROOT / "docs/runbooks/alerts.md").read_text().partition(f"### {rule['alert']}\n")
    assert section.partition("\n##")[0].count(f"\n- **Fires**: {when}, {rule['labels']['severity']}.\n") == 1


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_a_text_shows_a_count_as_a_whole_number(rule: dict[str, Any]) -> None:
    """`increase` extrapolates: two dead letters would be "About 2.387"."""
    shown = re.findall(r"\{\{ \$value ?\|? ?([^}]*?) \}\}", " ".join(rule["annotations"].values()))
    assert set(shown) <= {"printf `%.0f`", "humanizePercentage", "humanizeDuration"}


def test_a_page_names_no_alert_that_there_is_not() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs/runbooks").glob("*.md"))
    named = set(re.findall(r"`(Bcs\w+)`", pages))
    assert named
    assert named <= {rule["alert"] for rule in ALERTS}
