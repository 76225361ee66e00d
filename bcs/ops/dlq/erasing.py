"""Erases the dead letters of a batch, as far as Kafka allows.

Kafka deletes the records of a partition only up to an offset, and a compacted topic removes what a later record with
the same key replaces. So a dead letter behind one of another batch, in a topic that is not compacted, can't be deleted:
it would take the other one with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import anyio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from bcs.config.settings import Settings
from bcs.ops.dlq.purging import delete_records, operators_admin
from bcs.ops.dlq.reading import DeadLetterIndex, dead_letter_reader, kafka_answers
from bcs.ops.dlq.replaying import operators_producer
from bcs.wire import topics
from bcs.wire.dead_letters.decode import ERASED_HEADER, DeadLetterPosition

_NOT_OURS = "written by another service"
_BEHIND = "behind {first}, which is not of this batch: it goes when Kafka's retention or a purge removes it"
_UNDELETABLE = "this broker can't delete records: it goes when Kafka's retention removes it"
_COMPACTED = "a tombstone is behind it: it goes when Kafka compacts the topic"


@dataclass(frozen=True, slots=True)
class LeftDeadLetter:
    """A dead letter that is still in its topic.

    :param why: the reason, and when it goes.
    :param goes: True if a tombstone removes it.
    """

    position: DeadLetterPosition
    why: str
    goes: bool = False


@dataclass(frozen=True, slots=True)
class ErasedDeadLetters:
    """What became of the dead letters of a batch.

    :param deleted: the dead letters that are deleted.
    :param unread: why partitions could not be read to their ends.
    """

    deleted: tuple[DeadLetterPosition, ...]
    left: tuple[LeftDeadLetter, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersToErase:
    """The dead letters of a batch.

    :param ours: those that BCS wrote, in their order.
    :param keyed: those of them that a tombstone replaces in a compacted topic.
    :param last: the last offset of each partition up to which there is nothing else.
    :param before: in each partition the first record that is not of the batch.
    """

    ours: tuple[DeadLetterPosition, ...]
    keyed: frozenset[DeadLetterPosition]
    of_others: tuple[DeadLetterPosition, ...]
    last: dict[tuple[str, int], int]
    before: dict[tuple[str, int], DeadLetterPosition]
    unread: tuple[str, ...]


def dead_letters_to_erase(index: DeadLetterIndex, batch_id: str) -> DeadLettersToErase:
    """The dead letters of a batch, and which of them Kafka can delete. An unreadable record may be of any batch."""
    of_batch = sorted(where for where, each in index.dead_letters.items() if each.batch_id == batch_id)
    ours = tuple(where for where in of_batch if index.dead_letters[where].is_ours)
    before: dict[tuple[str, int], DeadLetterPosition] = {}
    for where in sorted({*index.dead_letters, *index.unreadable}.difference(ours)):
        before.setdefault((where.topic, where.partition), where)
    last: dict[tuple[str, int], int] = {}
    for where in ours:
        place = where.topic, where.partition
        if place not in before or where < before[place]:
            last[place] = where.offset
    of_others = tuple(where for where in of_batch if where not in ours)
    keyed = frozenset(where for where in ours if index.keys[where] == batch_id.encode())
    return DeadLettersToErase(
        ours=ours, keyed=keyed, of_others=of_others, last=last, before=before, unread=tuple(map(str, index.stalled))
    )


async def read_dead_letters(settings: Settings, batch_id: str) -> DeadLettersToErase:
    """The dead letters of a batch that are in the topics now.

    :raises KafkaUnavailable: Kafka does not answer.
    """
    async with dead_letter_reader(settings) as reader:
        return dead_letters_to_erase(await reader.index(topics.DEAD_LETTERS), batch_id)


async def erase_dead_letters(settings: Settings, batch_id: str) -> ErasedDeadLetters:
    """Delete the dead letters of a batch, and say which are left.

    :raises KafkaUnavailable: Kafka does not answer, or refuses; some may be deleted.
    """
    found = await read_dead_letters(settings, batch_id)
    deleted: set[DeadLetterPosition] = set()
    compacted: Collection[str] = ()
    supported = True
    if found.ours:
        async with operators_admin(settings) as admin:
            with kafka_answers(), anyio.fail_after(settings.kafka_request_timeout_seconds):
                policies = await _cleanup_policies(admin, sorted({where.topic for where in found.ours}))
                compacted = {topic for topic, policy in policies.items() if "compact" in policy}
                # A topic that is only compacted refuses to delete.
                last = {place: offset for place, offset in found.last.items() if policies.get(place[0]) != "compact"}
                supported = await delete_records(admin, last) if last else True
        if supported:
            deleted = {where for where in found.ours if where.offset <= last.get((where.topic, where.partition), -1)}
    stay = [where for where in found.ours if where not in deleted]
    going = {where for where in stay if where.topic in compacted and where in found.keyed}
    if places := sorted({(where.topic, where.partition) for where in going}):
        async with operators_producer(settings) as producer:
            with kafka_answers():
                for topic, partition in places:
                    headers = [(ERASED_HEADER, b"")]
                    await producer.send_and_wait(topic, None, batch_id.encode(), partition, headers=headers)
    left = [LeftDeadLetter(where, _NOT_OURS) for where in found.of_others]
    for where in stay:
        if where in going:
            left.append(LeftDeadLetter(where, _COMPACTED, goes=True))
        elif not supported:
            left.append(LeftDeadLetter(where, _UNDELETABLE))
        else:
            left.append(LeftDeadLetter(where, _BEHIND.format(first=found.before[where.topic, where.partition])))
    return ErasedDeadLetters(tuple(sorted(deleted)), tuple(left), found.unread)


async def _cleanup_policies(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, str]:
    """How topics are cleaned up, as far as the broker says."""
    policies: dict[str, str] = {}
    requested = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for response in await admin.describe_configs(requested):
        for resource in response.to_object()["resources"]:
            for entry in resource["config_entries"]:
                if entry["config_names"] == "cleanup.policy":
                    policies[resource["resource_name"]] = entry["config_value"] or ""
    return policies
