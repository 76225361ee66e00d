"""The findings of `bcs doctor` from the servers' answers."""

from __future__ import annotations

import pytest

from bcs.config.settings import Settings
from bcs.config.unknown import unknown_variables
from bcs.kafka.brokers import Broker
from bcs.kafka.offsets import CommitNote, Offsets
from bcs.ops.doctor import archive_findings as record
from bcs.ops.doctor import kafka_findings as kafka
from bcs.ops.doctor import redis_findings as redis
from bcs.ops.doctor import settings_findings
from bcs.ops.doctor.findings import Finding, Status
from bcs.ops.doctor.kafka_findings import TopicConfig
from bcs.ops.doctor.service_checks import finding_of
from bcs.storage.postgres.migrations import HEAD
from bcs.storage.redis.errors import UnusableServer
from bcs.storage.redis.sentinel import NamedMaster

OK, WARNING, FAILED = Status.OK, Status.WARNING, Status.FAILED
MEBIBYTE = 1024 * 1024
HOUR_MS = 3_600_000
NOW_MS = 500_000 * HOUR_MS
DAY_MS = 86_400_000


def assert_finding(finding: Finding, status: Status, *said: str) -> None:
    assert finding.status is status, finding
    assert bool(finding.fix) == (status is not OK), "what is wrong comes with what to do, and only that"
    for words in said:
        assert words in finding.found + finding.fix, finding


@pytest.mark.parametrize(
    ("memory", "status", "said"),
    [
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, OK, "not set"),
        ({"maxmemory": "1000", "maxmemory_policy": "noeviction"}, OK, "noeviction"),
        ({"maxmemory": "1000", "maxmemory_policy": "allkeys-lru"}, FAILED, "an evicted key is a lost fact"),
        ({"maxmemory": "1000", "maxmemory_policy": "volatile-ttl"}, FAILED, "volatile-ttl"),
        ({}, WARNING, "no result"),
        ({"maxmemory": "", "maxmemory_policy": "noeviction"}, WARNING, "no result"),
    ],
)
def test_keys_may_not_be_evicted(memory: dict[str, str], status: Status, said: str) -> None:
    assert_finding(redis.eviction(memory), status, said)


@pytest.mark.parametrize(
    ("used", "limit", "status", "said"),
    [
        (3 * MEBIBYTE, 0, OK, "3.0 MiB used, no limit"),
        (79, 100, OK, "79%"),
        (80, 100, WARNING, "80%"),
        (200, 100, WARNING, "200%"),
    ],
)
def test_memory_is_compared_with_its_limit(used: int, limit: int, status: Status, said: str) -> None:
    assert_finding(redis.memory_left({"used_memory": str(used), "maxmemory": str(limit)}), status, said)


@pytest.mark.parametrize(
    ("info", "save", "status", "said"),
    [
        ({"aof_enabled": "1"}, "", OK, "AOF on"),
        ({"aof_enabled": "0"}, "3600 1", OK, "RDB snapshots on"),
        ({"aof_enabled": "1"}, "3600 1", OK, "AOF and RDB snapshots on"),
        ({"aof_enabled": "0"}, "", WARNING, "neither AOF nor RDB"),
        ({"aof_enabled": "1"}, None, OK, "AOF on"),
        ({"aof_enabled": "0"}, None, WARNING, "AOF is off, and Redis does not report whether RDB snapshots are on"),
        ({}, None, WARNING, "does not report whether AOF or RDB is on"),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, "", FAILED, "disk"),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, "3600 1", FAILED, "disk"),
    ],
)
def test_persistence(info: dict[str, str], save: str | None, status: Status, said: str) -> None:
    assert_finding(redis.persistence(info, save), status, said)


@pytest.mark.parametrize(
    ("length", "oldest", "status", "said"),
    [
        (0, None, OK, "no message"),
        (1, 60.0, OK, "1 message waits for Kafka, the oldest for 60 s"),
        (2, 61.0, WARNING, "2 messages wait for Kafka, the oldest for 61 s"),
        (2, None, WARNING, "2 messages wait"),
        (10, 1.0, FAILED, "full"),
    ],
)
def test_messages_should_not_wait_long_in_the_outbox(
    length: int, oldest: float | None, status: Status, said: str
) -> None:
    assert_finding(redis.outbox(length, oldest, limit=10), status, said)


def test_a_version_that_is_not_told_is_warned_of() -> None:
    assert_finding(redis.version({"redis_version": "7.2.4"}), OK, "Redis 7.2.4")
    assert_finding(redis.version({}), WARNING, "6.2 or newer", "+info")


def test_parked_messages_need_a_person_who_is_told_where_they_are() -> None:
    assert_finding(redis.parked(0, "bcs:{outbox}:parked"), OK)
    assert_finding(redis.parked(2, "bcs:{outbox}:parked"), FAILED, "2 parked", "XRANGE bcs:{outbox}:parked")


@pytest.mark.parametrize(
    ("missing", "status", "said"), [(0, OK, "3 masters have all 16384 slots"), (4, FAILED, "4 of 16384 slots")]
)
def test_every_slot_of_a_cluster_needs_a_master(missing: int, status: Status, said: str) -> None:
    assert_finding(redis.slots(3, missing, 16384), status, said)


def test_a_master_of_a_cluster_needs_a_replica() -> None:
    assert_finding(redis.shard(5461, ["a:1", "b:2"]), OK, "master of 5461 slots, with 2 replicas: a:1, b:2")
    assert_finding(redis.shard(1, []), WARNING, "master of 1 slot, without a replica", "refused")


@pytest.mark.parametrize(
    ("count", "status", "said"), [(2, OK, "2 connected"), (0, WARNING, "no failover"), (None, WARNING, "no result")]
)
def test_the_master_of_sentinels_needs_a_replica(count: int | None, status: Status, said: str) -> None:
    assert_finding(redis.replicas(count), status, said)


@pytest.mark.parametrize(
    ("status_in_info", "status", "said"),
    [("up", OK, "connected"), ("down", WARNING, "is down"), (None, WARNING, "no result")],
)
def test_a_replica_needs_its_master(status_in_info: str | None, status: Status, said: str) -> None:
    info = {} if status_in_info is None else {"master_link_status": status_in_info}
    assert_finding(redis.replication(info), status, said)


OLD, NEW = (NamedMaster(host="h", port=epoch, epoch=epoch) for epoch in (1, 2))
DOWN = NamedMaster(host="h", port=2, epoch=2, down=True)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([NEW, NEW, NEW], [(OK, "a: names the master h:2"), (OK, "b: names"), (OK, "c: names")]),
        ([NEW, OLD, NEW], [(OK, "a"), (WARNING, "b: names the former master h:1"), (OK, "c")]),
        ([NEW, NEW, TimeoutError()], [(OK, "a"), (OK, "b"), (WARNING, "c: it did not answer in time")]),
        ([DOWN, NEW, NEW], [(WARNING, "a: does not reach the master h:2"), (OK, "b"), (OK, "c")]),
        ([NEW, TimeoutError(), TimeoutError()], [(OK, "a"), (FAILED, "most of the Sentinels"), (FAILED, "c")]),
        ([UnusableServer("refused"), UnusableServer("refused")], [(FAILED, "a: refused"), (FAILED, "b: refused")]),
    ],
)
def test_most_sentinels_have_to_name_one_master(
    answers: list[NamedMaster | Exception], expected: list[tuple[Status, str]]
) -> None:
    found = redis.sentinels(dict(zip("abc", answers, strict=False)))
    for finding, (status, said) in zip(found, expected, strict=True):
        assert_finding(finding, status, said)


@pytest.mark.parametrize(
    ("ahead", "status", "said"),
    [(0.0, OK, ""), (-1.0, OK, ""), (1.5, WARNING, "1.5 s behind"), (-90.0, WARNING, "90.0 s ahead of")],
)
def test_clocks_may_differ_by_a_second(ahead: float, status: Status, said: str) -> None:
    assert_finding(redis.clock(ahead), status, said)


@pytest.mark.parametrize(
    ("version", "problem", "status", "said"),
    [
        (None, None, WARNING, "no tables yet"),
        ("0000", None, WARNING, "`bcs db upgrade`"),
        (None, "this user may not create the tables", FAILED, "there are no tables yet, and this user may not"),
        (HEAD, None, OK, f"version {HEAD}"),
        ("9999", None, OK, "newer"),
    ],
)
def test_the_schema_of_the_record(version: str | None, problem: str | None, status: Status, said: str) -> None:
    assert_finding(record.schema(version, problem), status, said)


def test_a_replica_needs_all_of_its_connections() -> None:
    assert record.connections(None, 9) == record.connections(9, 9) == []
    [finding] = record.connections(8, 9)
    assert_finding(finding, WARNING, "8 allowed", "up to 9", "BCS_DATABASE_MAX_CONNECTIONS")


@pytest.mark.parametrize(
    ("length", "oldest", "status", "said"),
    [
        (0, None, OK, "no entry"),
        (1, 60.0, OK, "1 entry waits for PostgreSQL, the oldest for 60 s"),
        (2, 61.0, WARNING, "2 entries wait for PostgreSQL, the oldest for 61 s"),
        (2, None, WARNING, "2 entries wait"),
        (10, 1.0, FAILED, "full"),
    ],
)
def test_entries_should_not_wait_long_for_the_record(
    length: int, oldest: float | None, status: Status, said: str
) -> None:
    assert_finding(record.backlog(length, oldest, limit=10), status, said)


def test_entries_that_nobody_fetches_any_more_need_a_person() -> None:
    assert_finding(record.left_behind(3), WARNING, "3 entries wait", "BCS_DATABASE_URL")
    assert_finding(record.parked(0, "bcs:{outbox}:archive:parked"), OK)
    assert_finding(record.parked(1, "bcs:{outbox}:archive:parked"), FAILED, "1 entry", "bcs:{outbox}:archive:parked")


@pytest.mark.parametrize(
    ("leaders", "status", "said"),
    [
        (None, FAILED, "does not exist"),
        ([True], OK, "1 partition"),
        ([True, True], OK, "2 partitions"),
        ([True, False], FAILED, "1 without a leader"),
    ],
)
def test_topics(leaders: list[bool] | None, status: Status, said: str) -> None:
    finding = kafka.topic("consumed", "a.topic", leaders)
    assert_finding(finding, status, said, "a.topic")
    assert finding.check == "topic consumed"


@pytest.mark.parametrize(
    ("policies", "status", "said"),
    [
        ({}, OK, "no topic"),
        ({"a.DLQ": "delete", "b.DLQ": ""}, OK, "no topic"),
        ({"a.DLQ": "delete", "b.DLQ": "compact,delete"}, FAILED, "compacted: b.DLQ."),
    ],
)
def test_topics_of_dead_letters_should_not_be_compacted(policies: dict[str, str], status: Status, said: str) -> None:
    assert_finding(kafka.compaction(policies), status, said)


@pytest.mark.parametrize(
    ("state", "members", "status"),
    [
        ("Stable", 2, OK),
        ("PreparingRebalance", 2, WARNING),
        ("Unknown", 1, WARNING),
        ("Empty", 0, WARNING),
        ("Dead", 0, WARNING),
    ],
)
def test_groups(state: str, members: int, status: Status) -> None:
    assert_finding(kafka.group("a-group", state, members, None), status, "a-group", state)


def test_a_running_service_without_group_members_is_a_failure() -> None:
    finding = kafka.group("a-group", "Empty", 0, "http://127.0.0.1:4002")
    assert_finding(finding, FAILED, "although a service runs at http://127.0.0.1:4002", "/healthz")
    assert "start the service" not in finding.fix


def test_a_listener_that_is_out_of_reach_is_named_with_its_broker() -> None:
    [finding] = kafka.listeners({Broker(3, "kafka-3.internal", 9092): "Connection refused"})
    assert_finding(
        finding, FAILED, "broker 3 advertises kafka-3.internal:9092: Connection refused", "advertised.listeners"
    )


def config(days: float | None, timestamp_type: str = "CreateTime", retention_bytes: str = "-1") -> TopicConfig:
    kept_ms = "-1" if days is None else str(int(days * DAY_MS))
    said = {"retention.ms": kept_ms, "retention.bytes": retention_bytes, "message.timestamp.type": timestamp_type}
    return TopicConfig.read(said)


@pytest.mark.parametrize(
    ("letters", "source", "said"),
    [
        (config(7), config(7), []),
        (config(None), config(None), []),
        (config(7), None, []),
        (TopicConfig.read({}), TopicConfig.read({}), []),  # a broker that says nothing
        (config(6.9), config(7), [(FAILED, "a.DLQ keeps a dead letter for 6.9 days, and Redis a batch for 7.0 days")]),
        (config(7, retention_bytes="100"), config(7), [(WARNING, "at most 100 bytes")]),
        (config(30), config(7), [(WARNING, "replayed with their old time")]),
        (config(None), config(7, "LogAppendTime"), [(WARNING, "truncated dead letters are removed")]),
    ],
)
def test_dead_letters_are_kept_as_long_as_a_replay_may_need_them(
    letters: TopicConfig, source: TopicConfig | None, said: list[tuple[Status, str]]
) -> None:
    findings = kafka.retention({"a.DLQ": letters}, {"a.DLQ": source}, kept_ms=7 * DAY_MS)
    assert len(findings) == len(said)
    for finding, (status, words) in zip(findings, said, strict=True):
        assert_finding(finding, status, words)


@pytest.mark.parametrize(
    ("waiting", "of_others", "complete", "status", "said"),
    [
        ({}, 0, True, OK, "none waits"),
        ({}, 2, True, OK, "none waits; 2 more of other services"),
        ({}, 0, False, WARNING, "not all could be read"),
        ({"a.DLQ": 1}, 0, True, FAILED, "1 waits: 1 on a.DLQ"),
        ({"a.DLQ": 1, "b.DLQ": 2}, 0, False, FAILED, "at least 3 wait: 1 on a.DLQ, 2 on b.DLQ"),
    ],
)
def test_letters_that_wait_need_a_person(
    waiting: dict[str, int], of_others: int, complete: bool, status: Status, said: str
) -> None:
    assert_finding(kafka.dead_letters(waiting, of_others=of_others, complete=complete), status, said)


def test_a_broker_that_creates_topics_is_warned_of() -> None:
    assert kafka.creation(False) == []
    [finding] = kafka.creation(True)
    assert_finding(finding, WARNING, "auto.create.topics.enable")


def test_a_service_that_is_not_in_order_is_quoted() -> None:
    away = {
        "redis": {"status": "healthy", "message": "reachable"},
        "kafka": {"status": "unhealthy", "message": "gone"},
    }
    health: dict[str, object] = {"status": "degraded", "message": "not in order: kafka", "dependencies": away}
    finding = finding_of("http://here", health)
    assert_finding(finding, FAILED, "http://here, degraded: not in order: kafka; kafka: gone", "http://here/healthz")
    assert_finding(finding_of("http://here", {**health, "status": "healthy"}), OK, "http://here")


def test_a_variable_that_was_meant_for_a_setting_fails() -> None:
    misspelt, foreign = settings_findings.unknown(
        unknown_variables({"BCS_HTPP_PORT": "1", "BCS_FROBNICATE": "1"})[::-1]
    )
    assert_finding(misspelt, FAILED, "BCS_HTPP_PORT is not a setting", "rename it to BCS_HTTP_PORT")
    assert_finding(foreign, WARNING, "BCS_FROBNICATE is not a setting")


@pytest.mark.parametrize("environment", ["production", "development"])
def test_what_is_for_drills_fails_in_production(environment: str) -> None:
    settings = Settings(environment=environment, chaos_enabled=True, use_mock_repository=True)
    findings = settings_findings.for_drills_only(settings)
    assert len(findings) == (2 if environment == "production" else 0)
    for finding, named in zip(findings, ("BCS_CHAOS_ENABLED", "BCS_USE_MOCK_REPOSITORY"), strict=False):
        assert_finding(finding, FAILED, named)


@pytest.mark.parametrize(
    ("offsets", "from_earliest", "lag"),
    [
        (Offsets(0, 10, 4), True, 6),
        (Offsets(0, 10, 10), True, 0),
        (Offsets(3, 10, None), True, 7),
        (Offsets(3, 10, None), False, 0),
        (Offsets(6, 10, 4), True, 4),  # two that it had not read are gone
        (Offsets(0, 3, 5), True, 0),  # the topic was made anew
    ],
)
def test_lag_is_what_is_still_to_be_read(offsets: Offsets, from_earliest: bool, lag: int) -> None:
    assert offsets.lag(from_earliest=from_earliest) == lag


def test_the_lag_of_a_topic_is_the_sum_over_its_partitions() -> None:
    partitions = {0: Offsets(0, 10, 8), 1: Offsets(0, 10, None)}
    assert_finding(kafka.lag("a.topic", partitions, from_earliest=True, many=12), OK, "a.topic: 12 messages")
    assert_finding(kafka.lag("a.topic", partitions, from_earliest=True, many=11), WARNING, "12 messages")


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        (Offsets(0, 50, 50), ""),
        (Offsets(50, 50, None), ""),  # nothing was read yet, so nothing was missed
        (Offsets(40, 50, 0), "a.topic/3: 40 messages removed"),
        (Offsets(1, 50, 0), "a.topic/3: 1 message removed"),
        (Offsets(40, 50, 50, CommitNote(missed=40, missed_at_ms=NOW_MS - HOUR_MS)), "a.topic/3: 40 messages removed"),
        (Offsets(60, 70, 50, CommitNote(missed=40, missed_at_ms=NOW_MS - HOUR_MS)), "a.topic/3: 50 messages removed"),
        (Offsets(40, 50, 50, CommitNote(missed=40, missed_at_ms=NOW_MS - 25 * HOUR_MS)), ""),
    ],
)
def test_events_that_were_removed_unread_are_told_for_a_day(offsets: Offsets, said: str) -> None:
    findings = kafka.missed("a.topic", {3: offsets}, now_ms=NOW_MS)
    assert bool(findings) is bool(said)
    for finding in findings:
        assert_finding(finding, FAILED, said, "retention")


@pytest.mark.parametrize(
    ("required", "seen", "status", "found"),
    [
        (False, False, OK, "not required"),
        (False, True, WARNING, "looks complete too early"),
        (True, True, OK, "required"),
        (True, False, WARNING, "no batch was ever registered"),
    ],
)
def test_registration_is_recommended_where_batches_are_registered(
    required: bool, seen: bool, status: Status, found: str
) -> None:
    finding = kafka.registration(required=required, seen=seen)
    assert_finding(finding, status, found)
    assert ("BCS_REQUIRE_REGISTRATION" in finding.fix) is (status is WARNING)
