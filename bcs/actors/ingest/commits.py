"""Commits the offsets of what is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.messages import MessageAcked
from bcs.kafka.causes import cause_of
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.offsets import CommitNote
from bcs.observability.failpoints import FailPoint, hit
from bcs.supervision import ActorContext

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

_LAST_COMMIT_SECONDS = 1.0

Commits = Mapping[tuple[str, int], tuple[int, str]]
"""Topic and partition to the offset that is to be committed, and what is to stand beside it."""


class OffsetCommits:
    """Commits what the tracker says may be committed, one commit at a time, with a note beside each offset.

    :param consumer: in whose group the offsets are committed.
    :param context: is told that a commit has ended.
    :param timeout_seconds: for one commit.
    """

    def __init__(
        self,
        *,
        consumer: IsolatingConsumer,
        tracker: OffsetTracker,
        context: ActorContext[MessageAcked],
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
        """True while a commit has not ended."""
        return self._committing.locked()

    @property
    def is_member(self) -> bool:
        """True while the consumer is a member of the group."""
        # A replica that slept past its session learns of it here first. aiokafka would then commit without generation
        # or member, which Kafka takes while the group is empty: offsets could go back. There is no public way to know.
        coordinator: Any = self._consumer._coordinator
        return bool(coordinator.generation >= 0)

    async def commit(self) -> None:
        """Commit what is finished. What can't be committed is read again, by whoever has the partition then."""
        # One at a time, or an older commit could overtake a newer one.
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

    async def commit_at_the_end(self) -> None:
        """Commit once more, whatever ended the session; cancellation waits for it, at most a second."""
        with anyio.move_on_after(_LAST_COMMIT_SECONDS, shield=True):
            if (offsets := self._to_commit()) and self.is_member:
                await self._commit_each(offsets)

    def note_missed(self, key: TopicPartition, count: int, now_ms: int) -> None:
        """Kafka removed messages of a partition before they were read.

        The next commit tells it to all replicas, and to those that come after them.

        :param now_ms: milliseconds since 1970 UTC.
        """
        self._notes[key] = self._note(key).with_missed(count, now_ms)

    def forget(self, keys: Iterable[tuple[str, int]]) -> None:
        """Another ownership of these partitions begins: what stands beside their offsets is read from Kafka again."""
        for key in keys:
            self._notes.pop(key, None)

    def _note(self, key: TopicPartition) -> CommitNote:
        """What stands beside a partition's committed offset, or is to stand there with the next one."""
        if key not in self._notes:
            self._notes[key] = CommitNote.decode(self._consumer.committed_metadata(key))
        return self._notes[key]

    def _to_commit(self) -> Commits:
        return {
            key: (offset, self._note_beside(TopicPartition(*key))) for key, offset in self._tracker.to_commit().items()
        }

    def _note_beside(self, key: TopicPartition) -> str:
        """What is to stand beside the offset that is committed next."""
        written_ms = self._tracker.written_ms(*key)
        if written_ms is not None:
            self._notes[key] = replace(self._note(key), written_ms=written_ms)
        return self._note(key).encode()

    async def _commit_each(self, offsets: Commits) -> bool:
        """Commit these offsets; False where some could not be.

        What the broker refuses for one topic must not keep the others from being committed.
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
            # Not committed is only read again. After a rebalance it is someone else's to commit.
            log.info("offset_commit_failed", topics=sorted(by_topic), error=cause_of(error), summed_by=())
            return False
        self._tracker.committed({key: offset for key, (offset, _) in offsets.items()})
        self._context.heartbeat()
        return True
