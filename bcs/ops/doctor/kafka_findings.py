"""Findings from Kafka's answers about topics and the consumer group. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from bcs.errors import PartitionStalled
from bcs.kafka.brokers import Broker
from bcs.kafka.offsets import Offsets
from bcs.ops.doctor.findings import Finding, failed, ok, warning

_DAY_MS = 86_400_000
_STAMPED_BY_BROKER = "LogAppendTime"


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """The settings of a topic.

    :param retention_ms: None for no limit, or if the broker does not report it.
    :param retention_bytes: None for no limit, or if the broker does not report it.
    """

    cleanup_policy: str
    retention_ms: int | None
    retention_bytes: int | None
    timestamp_type: str

    @classmethod
    def read(cls, described: Mapping[str, str]) -> TopicConfig:
        """Read the settings of a topic by their names."""
        return cls(
            described.get("cleanup.policy", ""),
            _limit(described.get("retention.ms")),
            _limit(described.get("retention.bytes")),
            described.get("message.timestamp.type", ""),
        )


def listeners(unreachable: Mapping[Broker, str]) -> list[Finding]:
    """Checks that clients can reach each broker at its advertised address.

    :param unreachable: the brokers that can't be reached, with the reasons.
    """
    fix = "set advertised.listeners of the broker to an address that this machine and the service reach"
    return [
        failed("kafka listener", f"broker {broker.node_id} advertises {broker.host}:{broker.port}: {problem}", fix)
        for broker, problem in sorted(unreachable.items())
    ]


def creation(creates: bool) -> list[Finding]:
    """Checks if a broker creates a topic when a client names it. The clients of BCS ask the broker not to do so."""
    if not creates:
        return []
    found = "auto.create.topics.enable is on: a client that names a topic too early creates it with the defaults"
    return [
        warning("topic creation", found, "turn it off, and create the topics with the wanted partitions and retention")
    ]


def topic(use: str, name: str, leaders: Iterable[bool] | None) -> Finding:
    """Checks that a topic exists.

    :param use: `consumed` or `published`.
    :param leaders: True for each partition with a leader; None if the topic does not exist.
    """
    check = f"topic {use}"
    if leaders is None:
        found = f"{name} does not exist, or this user may not see it"
        return failed(check, found, "create it, as BCS creates no topics, or grant DESCRIBE on it")
    led = list(leaders)
    found = f"{name}: {len(led)} partition{'' if len(led) == 1 else 's'}"
    if not all(led):
        return failed(check, f"{found}, {led.count(False)} without a leader", "check the brokers that hold it")
    return ok(check, found)


def compaction(cleanup_policies: Mapping[str, str]) -> Finding:
    """Checks that Kafka keeps every dead letter.

    :param cleanup_policies: of the existing dead-letter topics; empty if the broker does not report them.
    """
    check = "dead-letter topics"
    compacted = [name for name, policy in cleanup_policies.items() if "compact" in policy]
    if compacted:
        found = f"compacted: {', '.join(compacted)}. Of several dead letters about one batch Kafka keeps only the last"
        return failed(check, found, "set cleanup.policy=delete on these topics")
    return ok(check, "no topic of dead letters is compacted")


def retention(
    dead_letters: Mapping[str, TopicConfig], sources: Mapping[str, TopicConfig | None], *, kept_ms: int
) -> list[Finding]:
    """Checks that dead letters and their originals are kept for as long as a replay may need them.

    :param dead_letters: the dead-letter topics.
    :param sources: the topic of the originals for each dead-letter topic; None if that is unknown.
    :param kept_ms: the time for which a batch is kept.
    """
    check = "dead-letter topics"
    findings = []
    for name, config in dead_letters.items():
        if config.retention_ms is not None and config.retention_ms < kept_ms:
            found = (
                f"{name} keeps a dead letter for {_time(config.retention_ms)}, and Redis a batch for {_time(kept_ms)}"
            )
            fix = "raise retention.ms: a dead letter that is removed before its replay is lost for its batch"
            findings.append(failed(check, found, fix))
        if config.retention_bytes is not None:
            found = f"{name} keeps at most {config.retention_bytes} bytes of dead letters for each partition"
            findings.append(
                warning(check, found, "set retention.bytes=-1: many dead letters at once remove older ones")
            )
        source = sources.get(name)
        if source and source.retention_ms is not None and source.retention_ms < (config.retention_ms or inf):
            found = f"{name} keeps dead letters longer than their originals are kept ({_time(source.retention_ms)})"
            replayed = (
                "" if source.timestamp_type == _STAMPED_BY_BROKER else " and messages replayed with their old time"
            )
            fix = f"raise retention.ms of the consumed topic: originals of truncated dead letters{replayed} are removed"
            findings.append(warning(check, found, fix))
    return findings


def dead_letters(waiting: Mapping[str, int], *, of_others: int, complete: bool) -> Finding:
    """Checks if dead letters wait for an operator.

    :param waiting: the number of dead letters without a replay, by topic.
    :param of_others: the number of dead letters of other services, which `waiting` does not count.
    :param complete: False if a part of the topics could not be read in time.
    """
    check, count = "dead letters", sum(waiting.values())
    others = f"; {of_others} more of other services" if of_others else ""
    least = "" if complete else "at least "
    if not count:
        found = "none waits" if complete else "not all could be read; of those that were read, none waits"
        if complete:
            return ok(check, f"{found}{others}")
        return warning(check, f"{found}{others}", "check with `bcs dlq list`")
    where = ", ".join(f"{number} on {name}" for name, number in waiting.items())
    fix = "see `bcs dlq list`, remove the cause, and then run `bcs dlq replay` or `bcs dlq purge`"
    return failed(check, f"{least}{count} {'waits' if count == 1 else 'wait'}: {where}{others}", fix)


def group(name: str, state: str, members: int, service: str | None) -> Finding:
    """Checks that the consumer group has members.

    :param state: the state of the group, as Kafka names it.
    :param service: the URL of the service that answers on this machine; None if no service answers.
    """
    if not members and service is not None:
        found = f"{name}: no members ({state or 'no state'}), although a service runs at {service}"
        fix = "its intake is stuck, or has another BCS_KAFKA_CONSUMER_GROUP_ID: its /healthz has the cause"
        return failed("consumer group", found, fix)
    if not members:
        fix = "start the service; if it runs, check its log and BCS_KAFKA_CONSUMER_GROUP_ID"
        return warning("consumer group", f"{name}: no members ({state or 'no state'})", fix)
    found = f"{name}: {members} member{'' if members == 1 else 's'} ({state})"
    if state != "Stable":
        return warning("consumer group", found, "repeat the check soon: no replica reads during a rebalance")
    return ok("consumer group", found)


def lag(name: str, partitions: Mapping[int, Offsets], *, from_earliest: bool, many: int) -> Finding:
    """Checks the lag of the group on a topic.

    :param many: how many messages one replica has in flight at most.
    """
    behind = sum(offsets.lag(from_earliest=from_earliest) for offsets in partitions.values())
    found = f"{name}: {behind} message{'' if behind == 1 else 's'} to be read"
    if behind > many:
        return warning(
            "lag", found, "repeat the check: if it does not fall, check the service's log, or start more replicas"
        )
    return ok("lag", found)


def missed(name: str, partitions: Mapping[int, Offsets], *, now_ms: int) -> list[Finding]:
    """Checks if Kafka removed events before the group had read them, now or within the last day.

    :param now_ms: milliseconds since 1970 UTC.
    """
    findings = []
    for partition, offsets in partitions.items():
        count = offsets.removed_unread + offsets.note.missed_lately(now_ms)
        if count:
            found = f"{name}/{partition}: {count} message{'' if count == 1 else 's'} removed before they were read"
            fix = "raise the topic's retention.ms and retention.bytes; have the platform send these events again"
            findings.append(failed("missed events", found, fix))
    return findings


def reading(stalled: Iterable[PartitionStalled]) -> list[Finding]:
    """Checks that the next message of each partition can be read.

    :param stalled: the partitions whose next message can't be read.
    """
    fix = "remove the cause; `bcs intake skip` skips a message that stays unreadable"
    return [failed("events", str(error), fix) for error in stalled]


def registration(*, required: bool, seen: bool) -> Finding:
    """Checks if a batch can be complete before its registration was read.

    :param required: `BCS_REQUIRE_REGISTRATION`.
    :param seen: True if the topic of registrations ever had a message.
    """
    check = "registration"
    if required and not seen:
        fix = "have the platform register its batches, or unset BCS_REQUIRE_REGISTRATION"
        return warning(check, "required, and no batch was ever registered: essays make no phase complete", fix)
    if required:
        return ok(check, "required: the essays of a batch that is not registered make no phase complete")
    if seen:
        fix = "set BCS_REQUIRE_REGISTRATION=true: the platform registers its batches"
        return warning(check, "not required: a batch whose registration was not read yet looks complete too early", fix)
    return ok(check, "not required, and no batch was ever registered")


def _limit(text: str | None) -> int | None:
    """A limit from Kafka; -1 means no limit."""
    return int(text) if text is not None and text.isdecimal() else None


def _time(milliseconds: int) -> str:
    days = milliseconds / _DAY_MS
    return f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours"
