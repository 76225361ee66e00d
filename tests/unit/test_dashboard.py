"""The dashboard asks for metrics and labels that there are, and is what its source makes."""

from __future__ import annotations

import json
import re

from bcs.observability.telemetry import Telemetry
from tests.support.alert_stories import all_rules
from tests.support.dashboard import DASHBOARD, EMPTY_WHEN_HEALTHY, ROWS, dashboard, queries

LABELS = {
    series: set(metric._labelnames)
    for metric, names in Telemetry().registry._collector_to_names.items()
    if hasattr(metric, "_labelnames")
    for series in names
}
RECORDED = {rule["record"] for rule in all_rules() if "record" in rule}
OF_PROMETHEUS = {"instance", "job", "le", "alertname", "severity"}


def test_the_dashboard_is_what_its_source_makes() -> None:
    assert DASHBOARD.read_text() == dashboard()


def test_every_query_reads_metrics_and_labels_that_there_are() -> None:
    for query in queries():
        read = set(re.findall(r"\bbcs_\w+", query))
        assert read or re.search(r"\b(?:bcs:|process_|ALERTS)", query), query
        assert read <= LABELS.keys(), query
        assert set(re.findall(r"\bbcs:[\w:]+", query)) <= RECORDED
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        known = set.union(OF_PROMETHEUS, *(LABELS[series] for series in read))
        assert grouped <= known, query
    assert len(queries()) > 50
    assert LABELS.keys() >= EMPTY_WHEN_HEALTHY.keys()


def test_every_metric_of_bcs_is_in_a_panel() -> None:
    text = " ".join([*queries(), *(rule["expr"] for rule in all_rules())])
    asked = {re.sub(r"_bucket$|_count$", "", name) for name in re.findall(r"\bbcs_\w+", text)}
    missing = {family.name for family in Telemetry().registry.collect() if family.name.startswith("bcs_")}
    missing -= {re.sub(r"_total$", "", name) for name in asked} | asked
    # Those of single pages and requests, which an overview has no room for.
    assert missing <= {"bcs_http_held_bytes", "bcs_ui_streams"}


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(ROWS)


def test_the_picture_shows_all_rows() -> None:
    picture = (DASHBOARD.parents[2] / "docs" / "images" / "dashboard.svg").read_text()
    assert re.findall(r'<text x="8" [^>]*>([^<]+)</text>', picture) == list(ROWS)
