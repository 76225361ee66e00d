"""From what Kafka says of topics and the consumer group to findings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bcs.commands.checks.findings import Finding, failed, ok, warning
from bcs.domain.errors import PartitionStalled
from bcs.kafka.offsets import Offsets


def topic(use: str, name: str, leaders: Iterable[bool] | None) -> Finding:
    """Whether a topic is there.

    :param use: `consumed` or `published`.
    :param leaders: for each partition whether it has a leader; None where there is no such topic.
    """
    check = f"topic {use}"
    if leaders is None:
        return failed(check, f"{name} does not exist", "create it: BCS creates none")
    led = list(leaders)
    found = f"{name}: {len(led)} partition{'' if len(led) == 1 else 's'}"
    if not all(led):
        return failed(check, f"{found}, {led.count(False)} without a leader", "see to the brokers that hold it")
    return ok(check, found)


def compaction(cleanup_policies: Mapping[str, str]) -> Finding:
    """Whether Kafka keeps every dead letter.

    :param cleanup_policies: of the topics of dead letters that exist; empty where the broker does not say.
    """
    check = "dead letters"
    compacted = [name for name, policy in cleanup_policies.items() if "compact" in policy]
    if compacted:
        found = f"compacted: {', '.join(compacted)}. Of several letters about one batch Kafka keeps the last"
        return warning(check, found, "set cleanup.policy=delete on these topics")
    return ok(check, "no topic of dead letters is compacted")


def group(name: str, state: str, members: int) -> Finding:
    """Whether anybody reads.

    :param state: Kafka's word for it.
    """
    if not members:
        fix = "start the service; if it runs, see to its log and to BCS_KAFKA_CONSUMER_GROUP_ID"
        return warning("consumer group", f"{name}: no members ({state or 'no state'})", fix)
    found = f"{name}: {members} member{'' if members == 1 else 's'} ({state})"
    if state != "Stable":
        return warning("consumer group", found, "ask again in a moment: nobody reads during a rebalance")
    return ok("consumer group", found)


def lag(name: str, partitions: Mapping[int, Offsets], *, from_earliest: bool, many: int) -> Finding:
    """How far behind the group is on a topic.

    :param many: with more than so many to be read, one replica can't have them all under way.
    """
    behind = sum(offsets.lag(from_earliest=from_earliest) for offsets in partitions.values())
    found = f"{name}: {behind} message{'' if behind == 1 else 's'} to be read"
    if behind > many:
        return warning("lag", found, "ask again: if it does not fall, see to the service's log, or start more replicas")
    return ok("lag", found)


def missed(name: str, partitions: Mapping[int, Offsets], *, now_ms: int) -> list[Finding]:
    """Whether events of a topic were gone before the group had read them, now or within the last day.

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
    """Whether the next message of each partition can be read.

    :param stalled: those where it can't.
    """
    fix = "see to what is named; `bcs intake skip` passes over a message that stays unreadable"
    return [failed("events", str(error), fix) for error in stalled]


def registration(*, required: bool, seen: bool) -> Finding:
    """Whether a batch can be complete before its registration was read.

    :param required: `BCS_REQUIRE_REGISTRATION`.
    :param seen: whether the topic of registrations ever had a message.
    """
    check = "registration"
    if required and not seen:
        fix = "have the platform register its batches, or unset BCS_REQUIRE_REGISTRATION"
        return warning(check, "required, and no batch was ever registered: none is complete by its essays", fix)
    if required:
        return ok(check, "required: a batch that is not registered is not complete by its essays")
    if seen:
        fix = "set BCS_REQUIRE_REGISTRATION=true: the platform registers its batches"
        return warning(check, "not required: a batch whose registration is still to be read looks complete early", fix)
    return ok(check, "not required, and no batch was ever registered")
