"""Grafana's dashboard, made from a list of panels.

    python -m tests.support.dashboard

writes config/grafana/bcs.json again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "config" / "grafana" / "bcs.json"
WINDOW = "$__rate_interval"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 7
_DEFINE = 'endpoint="/internal/v1/pipelines/define"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel.

    :param unit: Grafana's name of the unit.
    :param queries: each with the legend of its series.
    :param text: what a reader should know.
    """

    title: str
    unit: str
    queries: Mapping[str, str]
    text: str = ""

    def document(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel as Grafana has it."""
        return {
            "id": number,
            "type": "timeseries",
            "title": self.title,
            "description": self.text,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
            "fieldConfig": {
                "defaults": {"unit": self.unit, "min": 0, "custom": {"lineWidth": 1, "fillOpacity": 8}},
                "overrides": [],
            },
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
                for place, (query, legend) in enumerate(self.queries.items())
            ],
        }


def _rate(series: str, by: str) -> str:
    return f"sum by ({by}) (rate({series}[{WINDOW}]))"


def _quantile(share: float) -> str:
    buckets = f"rate(bcs_http_request_duration_seconds_bucket{{{_DEFINE}}}[{WINDOW}])"
    return f"histogram_quantile({share}, sum by (le) ({buckets}))"


ROWS: Mapping[str, Sequence[Panel]] = {
    "Objectives": [
        Panel(
            "Requests to define that failed",
            "percentunit",
            {"bcs:resolution_errors:ratio_rate5m": "5 min", "bcs:resolution_errors:ratio_rate1h": "1 h"},
            "The objective allows 0.1 % over 30 days.",
        ),
        Panel(
            "Requests to define slower than 250 ms",
            "percentunit",
            {"bcs:resolution_slow:ratio_rate5m": "5 min", "bcs:resolution_slow:ratio_rate1h": "1 h"},
            "The objective allows 1 % over 30 days.",
        ),
        Panel(
            "Age of the oldest event that waits",
            "s",
            {"max(bcs_kafka_intake_lag_seconds)": "oldest", "60 * max(bcs:intake_behind)": "more than a minute"},
            "The objective: for 99.5 % of the time below a minute.",
        ),
        Panel("Latency of define", "s", {_quantile(0.5): "p50", _quantile(0.99): "p99"}),
        Panel(
            "Error budget used",
            "percentunit",
            {
                "bcs:resolution_errors:ratio_rate3d / 0.001": "failures",
                "bcs:resolution_slow:ratio_rate3d / 0.01": "slow",
                "bcs:intake_behind:ratio3d / 0.005": "events that wait",
            },
            "As over the last three days: above 100 %, the budget does not last for 30 days.",
        ),
        Panel(
            "Alerts",
            "short",
            {'sum by (alertname, severity) (ALERTS{alertstate="firing",alertname=~"Bcs.*"})': "{{alertname}}"},
        ),
    ],
    "Flow": [
        Panel("Resolutions", "reqps", {_rate("bcs_pipeline_resolutions_total", "status"): "{{status}}"}),
        Panel("Answers by store", "reqps", {_rate("bcs_pipeline_answers_total", "source"): "{{source}}"}),
        Panel("Refusals", "reqps", {_rate("bcs_pipeline_refusals_total", "reason"): "{{reason}}"}),
        Panel("Phases pruned", "ops", {_rate("bcs_phases_pruned_total", "phase"): "{{phase}}"}),
        Panel("Requests", "reqps", {_rate("bcs_http_requests_total", "status_code"): "{{status_code}}"}),
        Panel(
            "Requests and connections open",
            "short",
            {
                "sum(bcs_http_requests_in_flight)": "requests",
                "sum(bcs_http_connections)": "connections",
                "sum(bcs_http_bodies_awaited)": "bodies awaited",
            },
        ),
        Panel(
            "Refused by limits, and callers dropped",
            "reqps",
            {
                _rate("bcs_http_limited_total", "limit"): "{{limit}}",
                _rate("bcs_http_callers_dropped_total", "waited_for, reason"): "{{waited_for}}: {{reason}}",
            },
        ),
        Panel(
            "Events", "ops", {_rate("bcs_events_processed_total", "event_type, outcome"): "{{event_type}}: {{outcome}}"}
        ),
        Panel(
            "Messages that wait",
            "short",
            {"sum by (topic) (max by (topic, partition) (bcs_kafka_consumer_lag))": "{{topic}}"},
        ),
        Panel(
            "Messages in flight",
            "short",
            {"bcs_intake_in_flight": "{{instance}}", "bcs_batch_actors": "batches, {{instance}}"},
        ),
        Panel(
            "New dead letters",
            "ops",
            {_rate("bcs_dead_letters_total", "topic, reason") + " > 0": "{{topic}}: {{reason}}"},
        ),
        Panel("Dead letters on their topics", "short", {"max by (topic) (bcs_dead_letters_waiting)": "{{topic}}"}),
    ],
    "Dependencies": [
        Panel(
            "Reachable",
            "bool",
            {
                "bcs_redis_up": "Redis, {{instance}}",
                "bcs_kafka_up": "Kafka, {{instance}}",
                "bcs_archive_up": "PostgreSQL, {{instance}}",
            },
        ),
        Panel("Actors that wait for a dependency", "s", {"bcs_actor_waits_seconds": "{{actor}}, {{instance}}"}),
        Panel(
            "Circuit breaker",
            "short",
            {"bcs_circuit_breaker_state": "{{dependency}}, {{instance}}"},
            "0 closed, 1 half-open, 2 open",
        ),
        Panel("Partitions stalled", "short", {"sum by (topic) (bcs_kafka_partition_stalled)": "{{topic}}"}),
        Panel(
            "Events that Kafka removed unread",
            "short",
            {f"sum by (topic) (increase(bcs_kafka_events_missed_total[{WINDOW}]))": "{{topic}}"},
        ),
        Panel(
            "Age of the last committed message",
            "s",
            {"time() - max by (topic, partition) (bcs_kafka_committed_timestamp_seconds)": "{{topic}}/{{partition}}"},
            "It also grows while no event comes.",
        ),
        Panel(
            "Contended writes to Redis",
            "ops",
            {
                "sum(rate(bcs_redis_commit_conflicts_total[$__rate_interval]))": "conflicts",
                "sum(rate(bcs_redis_commit_fallbacks_total[$__rate_interval]))": "all attempts lost",
            },
        ),
        Panel("Credentials that can't be used", "short", {"bcs_credentials_unusable": "{{setting}}, {{instance}}"}),
    ],
    "Supervision": [
        Panel("Restarts", "short", {f"sum by (actor) (increase(bcs_actor_restarts_total[{WINDOW}]))": "{{actor}}"}),
        Panel(
            "Restart intensity used",
            "percentunit",
            {"bcs_restart_intensity_used_ratio": "{{supervisor}}, {{instance}}"},
            "At 100 % the supervisor gives up.",
        ),
        Panel("Delay of the event loop", "s", {"bcs_event_loop_lag_seconds": "{{instance}}"}),
        Panel("Mailboxes", "short", {"sum by (actor) (bcs_mailbox_depth)": "{{actor}}"}),
        Panel("Oldest message in a mailbox", "s", {"max by (actor) (bcs_mailbox_oldest_message_seconds)": "{{actor}}"}),
        Panel(
            "CPU",
            "short",
            {f'rate(process_cpu_seconds_total{{job="bcs"}}[{WINDOW}])': "{{instance}}"},
            "A replica can use one core.",
        ),
        Panel("Memory", "bytes", {'process_resident_memory_bytes{job="bcs"}': "{{instance}}"}),
        Panel("Starts of the process", "short", {'changes(process_start_time_seconds{job="bcs"}[1h])': "{{instance}}"}),
        Panel("Log lines lost", "short", {f"increase(bcs_log_records_dropped_total[{WINDOW}])": "{{instance}}"}),
    ],
    "Outbox and archive": [
        Panel("Messages that wait for Kafka", "short", {"max(bcs_outbox_backlog)": "messages"}),
        Panel("Age of the oldest", "s", {"max(bcs_outbox_oldest_seconds)": "oldest"}),
        Panel(
            "Published",
            "ops",
            {
                _rate("bcs_outbox_published_total", "kind"): "{{kind}}",
                _rate("bcs_outbox_publish_failures_total", "kind"): "{{kind}}, failed",
                _rate("bcs_outbox_parked_total", "kind"): "{{kind}}, parked",
            },
        ),
        Panel("Entries that wait for PostgreSQL", "short", {"max(bcs_archive_backlog)": "entries"}),
        Panel(
            "Entries for PostgreSQL",
            "ops",
            {
                "sum(rate(bcs_archive_entries_written_total[$__rate_interval]))": "written",
                "sum(rate(bcs_archive_entries_queued_total[$__rate_interval]))": "queued",
                "sum(rate(bcs_archive_entries_parked_total[$__rate_interval]))": "parked",
                "sum(rate(bcs_history_entries_dropped_total[$__rate_interval]))": "explanations dropped",
            },
        ),
    ],
    "Definitions": [
        Panel(
            "Replicas by their definitions",
            "short",
            {"count by (version, hash) (bcs_pipeline_definitions_info)": "{{version}} {{hash}}"},
            "More than one line: replicas differ.",
        ),
        Panel(
            "Reloads",
            "short",
            {f"sum by (outcome) (increase(bcs_pipeline_definitions_reloads_total[{WINDOW}]))": "{{outcome}}"},
        ),
        Panel("Replicas that refused their file", "short", {"sum(bcs_pipeline_definitions_outdated)": "replicas"}),
        Panel(
            "Completions taken back",
            "short",
            {f"sum by (phase) (increase(bcs_phases_invalidated_total[{WINDOW}]))": "{{phase}}"},
        ),
    ],
}

EMPTY_WHEN_HEALTHY: Mapping[str, str] = {
    "bcs_http_callers_dropped_total": "no caller was dropped",
    "bcs_kafka_committed_timestamp_seconds": "the embedded broker keeps no notes of offsets",
    "bcs_credentials_unusable": "no file of callers or certificates is configured",
    "bcs_phases_invalidated_total": "no operator has taken a completion back",
}
"""Metrics whose panels may show nothing in a healthy service, each with the reason."""


def queries() -> list[str]:
    """All queries of all panels."""
    return [query for row in ROWS.values() for panel in row for query in panel.queries]


def dashboard() -> str:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}}
        )
        y += 1
        across = _COLUMNS // _WIDTH
        for place, panel in enumerate(row):
            x, below = place % across * _WIDTH, place // across * _HEIGHT
            panels.append(panel.document(len(panels) + 1, x, y + below))
        y += -(-len(row) // across) * _HEIGHT
    document = {
        "uid": "bcs",
        "title": "Batch Conductor Service",
        "tags": ["bcs"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {"list": []},
        "panels": panels,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard())
