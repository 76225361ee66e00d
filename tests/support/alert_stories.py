"""A story for each alert: series that are good, then bad, then good again. promtool plays them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import nan
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[2] / "config" / "prometheus-rules.yml"
DEFINE = 'endpoint="/internal/v1/pipelines/define"'
Rule = dict[str, Any]
MINUTE, TEN_MINUTES, HALF_AN_HOUR = 1, 10, 30


@dataclass(frozen=True, slots=True)
class Level:
    """A gauge.

    :param good: its value while all is well; None if the series is missing then.
    :param bad: its value in between.
    """

    good: float | None
    bad: float | None

    def values(self, phases: tuple[int, int, int]) -> str:
        """The values in promtool's notation, one for each step of three phases."""
        levels = zip((self.good, self.bad, self.good), phases, strict=True)
        return " ".join(_steps(level, 0, steps) for level, steps in levels)


@dataclass(frozen=True, slots=True)
class Count:
    """A counter.

    :param good: what is added in each step while all is well.
    :param bad: what is added in each step in between.
    """

    good: float
    bad: float

    def values(self, phases: tuple[int, int, int]) -> str:
        """The values in promtool's notation, one for each step of three phases."""
        value, parts = 0.0, []
        for slope, steps in zip((self.good, self.bad, self.good), phases, strict=True):
            parts.append(_steps(value, slope, steps))
            value += slope * steps
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Story:
    """Series under which one alert is silent, then fires, then ends.

    :param alert: its name; empty if no alert may fire.
    :param series: each with its values.
    :param labels: those of the alert that fires, without its name and severity.
    :param silent: other alerts, which must not fire.
    :param phases: for how many steps the series are good, bad, and good again.
    :param late: minutes until its expression is true; what the alert waits for comes after that.
    :param step: minutes between two values.
    """

    alert: str
    series: Mapping[str, Level | Count]
    labels: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    late: int = 0
    phases: tuple[int, int, int] = (20, 30, 40)
    step: int = MINUTE


A = {"instance": "a"}
BCS = {"instance": "a", "job": "bcs"}
TOPIC = {"topic": "t", "partition": "0"}
HOURS = (10, 10, 70)
REQUESTS = f'bcs_http_requests_total{{{DEFINE},status_code="200",instance="a"}}'
FAILURES = f'bcs_http_requests_total{{{DEFINE},status_code="503",instance="a"}}'
QUICK = f'bcs_http_request_duration_seconds_bucket{{{DEFINE},le="0.25",instance="a"}}'
ALL = f'bcs_http_request_duration_seconds_count{{{DEFINE},instance="a"}}'
COMPLETE = 'endpoint="/internal/v1/phases/complete"'
LAG = 'bcs_kafka_intake_lag_seconds{instance="a"}'
# Twelve hours of good, twelve of a little bad, and ten of good, with a value each half hour.
HALF_DAYS = (24, 24, 20)

STORIES: Sequence[Story] = (
    Story("BcsResolutionErrorsBurnsFast", {REQUESTS: Count(100, 100), FAILURES: Count(0, 3)}, phases=(20, 60, 40)),
    # Over six hours: too few for the quick windows.
    Story(
        "BcsResolutionErrorsBurnsFast",
        {REQUESTS: Count(1000, 1000), FAILURES: Count(0, 9)},
        phases=(36, 36, 36),
        step=TEN_MINUTES,
    ),
    Story(
        "BcsResolutionErrorsBurnsSlowly",
        {REQUESTS: Count(1000, 1000), FAILURES: Count(0, 3)},
        silent=("BcsResolutionErrorsBurnsFast",),
        phases=HALF_DAYS,
        step=HALF_AN_HOUR,
    ),
    Story("BcsResolutionLatencyBurnsFast", {ALL: Count(100, 100), QUICK: Count(100, 70)}, phases=(20, 60, 40)),
    Story(
        "BcsResolutionLatencyBurnsSlowly",
        {ALL: Count(1000, 1000), QUICK: Count(999, 970)},
        silent=("BcsResolutionLatencyBurnsFast",),
        phases=HALF_DAYS,
        step=HALF_AN_HOUR,
    ),
    Story("BcsFreshnessBurnsFast", {LAG: Level(0, 90)}, phases=(20, 15, 60)),
    Story("BcsFreshnessBurnsSlowly", {LAG: Level(1, 61)}, phases=(48, 2, 20), step=HALF_AN_HOUR),
    Story("BcsDown", {'up{instance="a",job="bcs"}': Level(1, 0)}, BCS),
    Story("BcsDown", {'up{instance="a",job="bcs"}': Level(1, None)}, {"job": "bcs"}),
    Story("BcsProcessRestarts", {'process_start_time_seconds{instance="a",job="bcs"}': Count(0, 60)}, BCS),
    Story(
        "BcsActorRestarts",
        {'bcs_actor_restarts_total{actor="intake",instance="a"}': Count(0, 1)},
        {"actor": "intake", **A},
    ),
    Story(
        "BcsRestartsNearLimit",
        {'bcs_restart_intensity_used_ratio{supervisor="bcs",instance="a"}': Level(0.4, 0.5)},
        {"supervisor": "bcs", **A},
    ),
    Story("BcsLoopLag", {'bcs_event_loop_lag_seconds{instance="a"}': Level(0.02, 0.2)}, A),
    Story("BcsLogDropped", {'bcs_log_records_dropped_total{instance="a"}': Count(0, 1)}, A),
    Story(
        "BcsCredentialsUnusable",
        {'bcs_credentials_unusable{setting="S",instance="a"}': Level(0, 1)},
        {"setting": "S", **A},
    ),
    Story("BcsKafkaNotMeasured", {'bcs_kafka_up{instance="a"}': Level(1, 0)}, A),
    Story(
        "BcsConsumerStandsStill",
        {
            'bcs_kafka_consumer_lag{topic="t",partition="0",instance="a"}': Level(0, 7),
            'bcs_kafka_committed_timestamp_seconds{topic="t",partition="0",instance="a"}': Count(60, 0),
        },
        TOPIC,
        late=5,
    ),
    Story(
        "BcsConsumerLag",
        {'bcs_kafka_consumer_lag{topic="t",partition="0",instance="a"}': Level(5000, 5001)},
        TOPIC,
    ),
    Story(
        "BcsPartitionStalled",
        {'bcs_kafka_partition_stalled{topic="t",partition="0",instance="a"}': Level(0, 1)},
        TOPIC,
    ),
    Story(
        "BcsEventsMissed",
        {'bcs_kafka_events_missed_total{topic="t",instance="a"}': Count(0, 1)},
        {"topic": "t"},
        phases=HOURS,
    ),
    Story(
        "BcsDeadLetters",
        {'bcs_dead_letters_total{topic="t",reason="r",instance="a"}': Count(0, 1)},
        {"topic": "t", "reason": "r"},
    ),
    Story("BcsDeadLetterFlood", {'bcs_dead_letters_total{topic="t",reason="r",instance="a"}': Count(5, 10)}),
    Story(
        "BcsDeadLettersWaiting",
        {'bcs_dead_letters_waiting{topic="t",instance="a"}': Level(0, 1)},
        {"topic": "t"},
        phases=(52, 60, 4),
        step=HALF_AN_HOUR,
    ),
    Story("BcsOutboxWaits", {'bcs_outbox_oldest_seconds{instance="a"}': Level(60, 61)}),
    Story("BcsOutboxFills", {'bcs_outbox_backlog{instance="a"}': Level(500_000, 500_001)}),
    Story(
        "BcsMessagesParked",
        {'bcs_outbox_parked_total{kind="k",instance="a"}': Count(0, 1)},
        {"kind": "k"},
        phases=HOURS,
    ),
    Story("BcsRedisDown", {'bcs_redis_up{store="redis",instance="a"}': Level(1, 0)}, {"store": "redis", **A}),
    Story(
        "BcsBreakerOpens",
        {'bcs_circuit_breaker_state{dependency="redis",instance="a"}': Level(0, 2)},
        {"dependency": "redis", **A},
    ),
    Story("BcsAnsweredByArchive", {'bcs_pipeline_answers_total{source="postgresql",instance="a"}': Count(0, 1)}),
    Story("BcsCommitFallbacks", {'bcs_redis_commit_fallbacks_total{instance="a"}': Count(1, 2)}),
    Story(
        "BcsActorWaits",
        {'bcs_actor_waits_seconds{actor="intake",instance="a"}': Level(300, 301)},
        {"actor": "intake", **A},
    ),
    Story(
        "BcsArchiveDown",
        {'bcs_archive_up{store="postgresql",instance="a"}': Level(1, 0)},
        {"store": "postgresql", **A},
    ),
    Story("BcsArchiveBacklog", {'bcs_archive_backlog{instance="a"}': Level(0, 1)}, late=14),
    Story("BcsArchiveFills", {'bcs_archive_backlog{instance="a"}': Level(500_000, 500_001)}),
    Story("BcsArchiveEntriesParked", {'bcs_archive_entries_parked_total{instance="a"}': Count(0, 1)}, phases=HOURS),
    Story("BcsHistoryDropped", {'bcs_history_entries_dropped_total{instance="a"}': Count(0, 1)}, phases=HOURS),
    Story("BcsDefinitionsRefused", {'bcs_pipeline_definitions_outdated{instance="a"}': Level(0, 1)}, A),
    Story(
        "BcsDefinitionsDiffer",
        {
            'bcs_pipeline_definitions_info{hash="one",instance="a"}': Level(1, 1),
            'bcs_pipeline_definitions_info{hash="one",instance="b"}': Level(1, None),
            'bcs_pipeline_definitions_info{hash="two",instance="b"}': Level(None, 1),
        },
        phases=(20, 60, 40),
    ),
    Story(
        "BcsHttpErrors",
        {
            f'bcs_http_requests_total{{{COMPLETE},status_code="200",instance="a"}}': Count(95, 90),
            f'bcs_http_requests_total{{{COMPLETE},status_code="500",instance="a"}}': Count(4, 9),
        },
        {"endpoint": "/internal/v1/phases/complete"},
    ),
    Story(
        "BcsHttpSlow",
        {
            f'bcs_http_request_duration_seconds_bucket{{{COMPLETE},method="POST",le="{le}",instance="a"}}': count
            for le, count in {"1": Count(100, 90), "2.5": Count(100, 100), "+Inf": Count(100, 100)}.items()
        },
        {"endpoint": "/internal/v1/phases/complete"},
    ),
    # Four failures of five requests in a night: they burn the budget, and wake nobody.
    Story(
        "",
        {REQUESTS: Count(0, 0.01), FAILURES: Count(0, 0.06)},
        silent=("BcsResolutionErrorsBurnsFast",),
        phases=(20, 60, 40),
    ),
    # Where nobody asks, there is no ratio.
    Story(
        "",
        {REQUESTS: Level(0, 0), FAILURES: Level(0, 0), ALL: Level(0, 0), QUICK: Level(0, 0)},
        silent=("BcsResolutionErrorsBurnsFast", "BcsResolutionLatencyBurnsFast"),
    ),
    # Before the first measurement there is no lag.
    Story(
        "",
        {LAG: Level(nan, nan), 'bcs_outbox_oldest_seconds{instance="a"}': Level(nan, nan)},
        silent=("BcsFreshnessBurnsFast", "BcsOutboxWaits"),
    ),
    # Topics that were idle, and a message that has just come.
    Story(
        "",
        {
            'bcs_kafka_consumer_lag{topic="t",partition="0",instance="a"}': Level(0, 1),
            'bcs_kafka_committed_timestamp_seconds{topic="t",partition="0",instance="a"}': Level(0, 0),
        },
        silent=("BcsConsumerStandsStill",),
        phases=(60, 4, 60),
    ),
)


def write_tests(directory: Path, rules: Sequence[Rule] = (), stories: Sequence[Story] = STORIES) -> list[Path]:
    """Write the stories as tests for promtool, beside the rules that they need.

    Stories of the same length share a file, if they share no series: each file costs promtool some time, and each rule
    of a file is evaluated in each step.

    :param rules: those that are tested; by default those of BCS.
    :returns: the files of tests.
    """
    rules = rules or all_rules()
    written = []
    for number, together in enumerate(_together(stories)):
        names = dict.fromkeys(name for story in together for name in (story.alert, *story.silent) if name)
        needed = [rule for name in names for rule in _with_sources(name, rules)]
        # Recording rules come first, each once.
        unique = {rule.get("alert") or rule["record"]: rule for rule in reversed(needed)}
        rule_file, test = directory / f"rules-{number}.yml", directory / f"test-{number}.yml"
        rule_file.write_text(json.dumps({"groups": [{"name": "needed", "rules": list(unique.values())}]}))
        step, phases = together[0].step, together[0].phases
        series = {name: shape.values(phases) for story in together for name, shape in story.series.items()}
        # `BcsDown` fires where the job is missing.
        series = {'up{instance="a",job="bcs"}': _steps(1, 0, sum(phases)), **series}
        tests = {
            "interval": f"{step}m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [check for story in together for check in _checks(story, unique)],
        }
        document = {"rule_files": [rule_file.name], "evaluation_interval": f"{step}m", "tests": [tests]}
        test.write_text(json.dumps(document))
        written.append(test)
    return written


def _together(stories: Sequence[Story]) -> list[list[Story]]:
    """The stories that can share a file."""
    groups: list[list[Story]] = []
    for story in stories:
        for group in groups:
            same_time = (group[0].step, group[0].phases) == (story.step, story.phases)
            metrics = {_metric(name) for other in group for name in other.series}
            if same_time and not metrics & {_metric(name) for name in story.series}:
                group.append(story)
                break
        else:
            groups.append([story])
    return groups


def _metric(series: str) -> str:
    return series.partition("{")[0]


@cache
def rules_document() -> dict[str, Any]:
    """The file of rules, as it is."""
    document: dict[str, Any] = yaml.load(RULES.read_text(), Loader=yaml.CSafeLoader)
    return document


def all_rules() -> list[Rule]:
    """The rules of BCS, in their order."""
    return [rule for group in rules_document()["groups"] for rule in group["rules"]]


def _with_sources(name: str, rules: Sequence[Rule]) -> list[Rule]:
    """A rule, and after it the recording rules that its expression reads."""
    found = [rule for rule in rules if name in (rule.get("alert"), rule.get("record"))]
    for rule in list(found):
        for source in dict.fromkeys(re.findall(r"\bbcs:[\w:]+", rule["expr"])):
            found += _with_sources(source, rules)
    return found


def _checks(story: Story, rules: Mapping[str, Rule]) -> list[dict[str, Any]]:
    good, bad, again = story.phases
    last_good, last_bad, end = [(steps - 1) * story.step for steps in (good, good + bad, good + bad + again)]
    checks = [_found(name, minutes, None) for name in story.silent for minutes in (last_good, last_bad, end)]
    if story.alert:
        rule = rules[story.alert]
        wait_minutes = _minutes(_WAITS[story.alert])
        labels = {"alertname": story.alert, "alertstate": "firing", **rule["labels"], **story.labels}
        checks += [_found(story.alert, last_good, None), _found(story.alert, last_bad, _labelled("ALERTS", labels))]
        checks.append(_found(story.alert, end, None))
        if wait_minutes >= story.step:
            checks.append(_found(story.alert, last_good + story.late + wait_minutes, None))
    return checks


def _found(alert: str, minutes: int, sample: str | None) -> dict[str, Any]:
    samples = [] if sample is None else [{"labels": sample, "value": 1}]
    expression = f'ALERTS{{alertstate="firing",alertname="{alert}"}}'
    return {"expr": expression, "eval_time": f"{minutes}m", "exp_samples": samples}


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}"


def _minutes(duration: str) -> int:
    units = {"m": 1, "h": 60, "d": 24 * 60}
    return int(duration[:-1]) * units[duration[-1]]


def _steps(value: float | None, slope: float, steps: int) -> str:
    if value is None:
        return f"_x{steps}"
    return f"{value:g}+{slope:g}x{steps - 1}"


# Also a rule that a test has changed is expected to wait as BCS's own does.
_WAITS: Mapping[str, str] = {rule["alert"]: rule.get("for", "0m") for rule in all_rules() if "alert" in rule}
