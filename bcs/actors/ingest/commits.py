"""Commits the offsets of finished messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.messages import MessagesAcked
from bcs.kafka.causes import cause_of
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.offsets import CommitNote
from bcs.observability.failpoints import FailPoint, hit
from bcs.supervision import ActorContext

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

_LAST_COMMIT_SECONDS = 1.0

Commits = Mapping[tuple[str, int], tuple[int, str]]
"""Topic and partition to the offset to commit and the metadata to store with the offset."""


class OffsetCommits:
    """Commits the offsets that the tracker allows, one commit at a time, each with a note in its metadata.

    :param consumer: the member of the group for which the offsets are committed.
    :param context: gets a heartbeat at the end of each commit.
    :param timeout_seconds: the time limit of one commit.
    """

    def __init__(
        self,
        *,
        consumer: IsolatingConsumer,
        tracker: OffsetTracker,
        context: ActorContext[MessagesAcked],
        timeout_seconds: float,
    ) -> None:
        self._consumer = consumer
        self._tracker = tracker
        self._context = context
        self._timeout_seconds = timeout_seconds
        self._notes: dict[tuple[str, int], CommitNote] = {}
        self._committing = anyio.Lock()

    @property
    def in_progress(self) -> bool:
        """True while a commit runs."""
        return self._committing.locked()

    @property
    def is_member(self) -> bool:
        """True while the consumer is a member of the group."""
        # After a pause longer than its session, a replica notices here first that the session has expired. aiokafka
        # would then commit without a generation and a member id. Kafka accepts such a commit while the group is empty,
        # so offsets could go back. aiokafka has no public API for this check.
        coordinator: Any = self._consumer._coordinator
        return bool(coordinator.generation >= 0)

    async def commit(self) -> None:
        """Commit the offsets of finished messages. After a failure the next commit has them, too."""
        # One commit at a time: otherwise an older commit could overtake a newer one.
        async with self._committing:
            offsets = self._to_commit()
            if not offsets:
                return
            if not self.is_member:
                log.info("offset_commit_failed", error="no longer a member of the group", summed_by=("error",))
                return
            await hit(FailPoint.BEFORE_OFFSET_COMMIT, self._context.name)
            if await self._commit_each(offsets):
                await hit(FailPoint.AFTER_OFFSET_COMMIT, self._context.name)

    async def commit_at_end(self) -> None:
        """Commit once more at the end of a session. Cancellation waits for this commit, at most one second."""
        with anyio.move_on_after(_LAST_COMMIT_SECONDS, shield=True):
            if (offsets := self._to_commit()) and self.is_member:
                await self._commit_each(offsets)

    def note_missed(self, key: TopicPartition, count: int, now_ms: int) -> None:
        """Note that Kafka removed messages of a partition before they were read.

        The next commit stores the note in Kafka, where all present and later replicas read it.

        :param now_ms: milliseconds since 1970 UTC.
        """
        self._notes[key] = self._note(key).with_missed(count, now_ms)

    def reset_notes(self, keys: Iterable[tuple[str, int]]) -> None:
        """Drop the notes of these partitions when a new ownership begins. They are then read from Kafka again."""
        for key in keys:
            self._notes.pop(key, None)

    def _note(self, key: TopicPartition) -> CommitNote:
        """The note of a partition: as it is in Kafka, with changes that the next commit stores."""
        if key not in self._notes:
            self._notes[key] = CommitNote.decode(self._consumer.committed_metadata(key))
        return self._notes[key]

    def _to_commit(self) -> Commits:
        return {
            key: (offset, self._note_to_commit(TopicPartition(*key)))
            for key, offset in self._tracker.to_commit().items()
        }

    def _note_to_commit(self, key: TopicPartition) -> str:
        """The encoded note that the next commit stores with the offset."""
        written_ms = self._tracker.written_ms(*key)
        if written_ms is not None:
            self._notes[key] = replace(self._note(key), written_ms=written_ms)
        return self._note(key).encode()

    async def _commit_each(self, offsets: Commits) -> bool:
        """Commit these offsets; False if some were not committed.

        If the broker refuses one topic, the offsets of the other topics are committed nevertheless.
        """
        try:
            with anyio.fail_after(self._timeout_seconds):
                await self._consumer.commit({TopicPartition(*key): commit for key, commit in offsets.items()})
        except (KafkaError, TimeoutError) as error:
            self._context.heartbeat()
            by_topic: dict[str, dict[tuple[str, int], tuple[int, str]]] = {}
            for key, commit in offsets.items():
                by_topic.setdefault(key[0], {})[key] = commit
            if isinstance(error, TopicAuthorizationFailedError) and len(by_topic) > 1:
                return all([await self._commit_each(topic) for topic in by_topic.values()])
            # Harmless: the next commit has these offsets, too, or the next owner reads the messages again.
            log.info("offset_commit_failed", topics=sorted(by_topic), error=cause_of(error), summed_by=())
            return False
        self._tracker.committed({key: offset for key, (offset, _) in offsets.items()})
        self._context.heartbeat()
        return True
