"""One membership in the consumer group, from subscribing to leaving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import anyio
import anyio.lowlevel
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from bcs.actors.ingest.commits import OffsetCommits
from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.passing_over import PassingOver
from bcs.actors.ingest.reading import EventReader, ahead_of_time
from bcs.actors.ingest.refused import RefusedMessages
from bcs.actors.ingest.turns import Turns
from bcs.actors.messages import ApplyFacts, DeliveryToken, MessageAcked, message_of, position_of
from bcs.actors.portions import Amount
from bcs.config.settings import Settings
from bcs.domain.skips import SkipOutcome
from bcs.errors import ClocksDiffer, StoreUnavailable, UndecodableMessage
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import KafkaStatus
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import INTAKE, READ_KAFKA, Waits
from bcs.supervision import ActorContext
from bcs.wire import topics

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

# What the intake may wait to do.
_DECIDE = "tell whether an event is ahead of time"

_POLL_SECONDS = 0.2
# aiokafka's getmany() ignores its own timeout while the group rebalances, which can take as long as Kafka is away.
_POLL_LIMIT_SECONDS = 1.0
# A poll hands over to other tasks after so many messages, or so many bytes, or it would hold up HTTP: to decode a
# megabyte takes up to 50 ms.
_MESSAGES_PER_TURN = 100
_BYTES_PER_TURN = 128 * 1024
# A poll that weighed more is followed by smaller ones: what is read in one goes beyond the budgets by so much.
_BYTES_PER_POLL = 8 * 1024 * 1024
_ACKNOWLEDGEMENTS_PER_TURN = 1000
_REVOKE_SECONDS = 5.0
_REMEMBERED_FACTOR = 20
# So soon the clocks are compared again, once they were found to differ.
_CLOCKS_SECONDS = 1.0


class PollSession(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Polls, hands over, and commits what has become durable.

    Two tasks: one polls, one collects what is finished and commits. They are apart because a rebalance holds up the one
    and waits for the other.

    :param consumer: connected, and not yet in the group.
    :param tracker: of this session alone.
    :param in_flight: of all sessions.
    :param now: wall-clock time.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        context: ActorContext[MessageAcked],
        consumer: IsolatingConsumer,
        reader: EventReader,
        in_flight: InFlight,
        tracker: OffsetTracker,
        refused: RefusedMessages,
        passing_over: PassingOver,
        commits: OffsetCommits,
        status: KafkaStatus,
        waits: Waits,
        telemetry: Telemetry,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._context = context
        self._consumer = consumer
        self._reader = reader
        self._in_flight = in_flight
        self._tracker = tracker
        self._refused = refused
        self._passing_over = passing_over
        self._commits = commits
        self._status = status
        self._waits = waits
        self._telemetry = telemetry
        self._now = now
        self._turns = Turns(messages=_MESSAGES_PER_TURN, size_bytes=_BYTES_PER_TURN)
        self._per_poll = Amount(settings.kafka_max_poll_records)
        self._progress = anyio.Event()
        self._over = False
        self._read_again_at = 0.0

    async def run(self) -> None:
        """Consume until a stop is asked for; then finish what was read, and commit it.

        Cancellation leaves messages unfinished and uncommitted; they are read again.

        :raises ExceptionGroup: of what made it impossible to go on.
        """
        skips = self._reader.skips
        # An order may be about the very first message.
        await skips.look()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._collect)
                group.start_soon(skips.follow)
                self._consumer.subscribe(topics.CONSUMED, listener=self)
                while not self._context.stopping:
                    await self._poll()
                await self._drain()
                await self._commits.commit()
                group.cancel_scope.cancel()
        finally:
            # Whatever ended it, what is finished need not be read again.
            await self._commits.commit_at_the_end()
            self._over = True
            self._status.assigned = frozenset()
            self._note_progress()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is held of these partitions, within bounds, and drop the rest: its next owner reads it again."""
        partitions = [(topic, partition) for topic, partition in revoked]
        with anyio.move_on_after(_REVOKE_SECONDS):
            # Once all is over nothing gets finished any more, and to wait would hold up the consumer's stop.
            while self._tracker.unfinished(partitions) and not self._over:
                await self._progress.wait()
        if not self._over:
            await self._commits.commit()
        self._tracker.revoke(partitions)
        self._status.assigned -= frozenset(partitions)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin new ownerships."""
        partitions = [(topic, partition) for topic, partition in assigned]
        self._tracker.assign(partitions)
        self._status.assigned |= frozenset(partitions)
        self._commits.forget(partitions)

    async def _drain(self) -> None:
        """Let what was read become durable, for as long as that goes on: the next process reads the rest again."""
        drain_seconds = self._settings.intake_drain_timeout_seconds
        drain_ends = anyio.current_time() + drain_seconds
        while (before := self._tracker.in_flight) and anyio.current_time() < drain_ends:
            await self._wait_for_progress()
            if self._tracker.in_flight < before:
                drain_ends = anyio.current_time() + drain_seconds

    async def _poll(self) -> None:
        self._heartbeat()
        wait_ms = int(_POLL_SECONDS * 1000)
        assigned = self._consumer.assignment()
        if self._must_wait():
            # Paused, not idle: a consumer that stops polling is thrown out of its group.
            self._consumer.pause(*(assigned - self._consumer.paused()))
            await self._wait_for_progress()
            wait_ms = 0
        else:
            self._consumer.resume(*(assigned & self._consumer.paused()))
            if anyio.current_time() > self._read_again_at + _CLOCKS_SECONDS:
                # What was waited for was read again since, and is well, or another replica has its partition now.
                self._status.go_on()
                self._waits.end(INTAKE, _DECIDE)
        records: dict[TopicPartition, list[ConsumerRecord]] = {}
        with anyio.move_on_after(_POLL_LIMIT_SECONDS):
            records = await self._consumer.getmany(timeout_ms=wait_ms, max_records=self._per_poll.now)
        self._note_silence()
        self._note_missed()
        self._weigh(records.values())
        # Taken before anything else can run: a rebalance may begin new epochs while the messages are handed over.
        epochs = {key: self._tracker.epoch(*key) for key in records}
        if records:
            await hit(FailPoint.INTAKE_RECEIVED, self._context.name)
        read_again = False
        for key, messages in records.items():
            read_again |= not await self._take(key, messages, epochs[key])
        if not read_again:
            self._note_passed()
        self._status.stall(self._consumer.stalled)
        await self._store_refused()
        if await self._passing_over.carry_out():
            self._note_progress()

    def _note_silence(self) -> None:
        """Tell that the intake waits for Kafka, also where that is frozen: then polls bring nothing, and no error."""
        status, waits = self._status, self._waits
        if status.connected is False:
            waits.begin(INTAKE, READ_KAFKA, status.problem, aloud=False)
        elif self._commits.is_member:
            waits.end(INTAKE, READ_KAFKA)

    def _note_missed(self) -> None:
        """Say what Kafka removed before it was read."""
        for missed in self._consumer.take_missed():
            key = TopicPartition(missed.topic, missed.partition)
            count = missed.to_offset - missed.from_offset
            log.warning(
                "events_missed",
                topic=missed.topic,
                partition=missed.partition,
                from_offset=missed.from_offset,
                to_offset=missed.to_offset,
                count=count,
            )
            self._telemetry.events_missed.labels(missed.topic).inc(count)
            self._commits.note_missed(key, count, int(self._now().timestamp() * 1000))

    def _weigh(self, polled: Iterable[Sequence[ConsumerRecord]]) -> None:
        sizes = [len(record.value or b"") for records in polled for record in records]
        if sum(sizes) > _BYTES_PER_POLL:
            self._per_poll.was_too_much(len(sizes))
        else:
            self._per_poll.was_taken()

    def _note_passed(self) -> None:
        # Right behind a poll, whose messages have all been taken. aiokafka's own position() waits where there is none.
        assignment: Any = self._consumer._subscription.subscription
        for key in self._consumer.assignment():
            state = assignment.assignment.state_value(key)
            if state is not None and state.has_valid_position:
                self._tracker.passed(key.topic, key.partition, state.position)

    def _must_wait(self) -> bool:
        return (
            len(self._refused) > 0
            or anyio.current_time() < self._read_again_at
            or self._in_flight.is_full
            # What is finished behind something unfinished must be remembered too.
            or self._tracker.remembered >= self._settings.intake_max_in_flight * _REMEMBERED_FACTOR
        )

    async def _wait_for_progress(self) -> None:
        with anyio.move_on_after(_POLL_SECONDS):
            await self._progress.wait()
        self._heartbeat()
        await self._store_refused()

    async def _take(self, key: TopicPartition, messages: list[ConsumerRecord], epoch: int | None) -> bool:
        """Hand messages over; False where some of them are to be read again."""
        for record in messages:
            if epoch is None or self._tracker.epoch(*key) != epoch:
                if epoch is None and key in self._consumer.assignment():
                    # Handed out before we were told of the assignment: passed over now, it would be lost.
                    self._consumer.seek(key, record.offset)
                return False
            if not await self._deliver(record, epoch):
                # A rebalance may have come meanwhile: of a new ownership nothing may be passed over.
                if self._is_owned(record, epoch):
                    self._consumer.seek(key, record.offset)
                return False
            if self._turns.is_over_after(len(record.value or b"")):
                await anyio.lowlevel.checkpoint()
        return True

    async def _deliver(self, record: ConsumerRecord, epoch: int) -> bool:
        """Hand a message's facts to its batch; False where it is to be read again later."""
        message = message_of(record)
        event_type = self._reader.event_type(record.topic)
        try:
            event = self._reader.read(record, message)
            if self._reader.seems_ahead(event):
                ahead = await self._reader.is_ahead(event)
                # Where a rebalance came meanwhile, the next owner decides.
                if not self._is_owned(record, epoch):
                    return False
                if ahead:
                    raise ahead_of_time(event)
        except UndecodableMessage as error:
            self._tracker.read(record.topic, record.partition, record.offset)
            self._refused.add(DeliveryToken(message, event_type, error.correlation_id, epoch), error)
            return True
        except (ClocksDiffer, StoreUnavailable) as error:
            self._read_again_at = anyio.current_time() + _CLOCKS_SECONDS
            self._status.wait_for(str(error))
            # The status says so in the log.
            self._waits.begin(INTAKE, _DECIDE, str(error), aloud=False)
            return False
        self._tracker.read(record.topic, record.partition, record.offset)
        token = DeliveryToken(message, event_type, event.correlation_id, epoch, event.event_id)
        if event.facts:
            await self._in_flight.deliver(ApplyFacts(event.batch_id, event.facts, token), token)
        else:
            self._telemetry.events(event_type, "ignored").inc()
            self._finish(token)
            self._note_progress()
        return True

    def _is_owned(self, record: ConsumerRecord, epoch: int) -> bool:
        """True while the partition is owned as it was when the record was read."""
        return self._tracker.epoch(record.topic, record.partition) == epoch

    async def _store_refused(self) -> None:
        """Make dead letters of what is refused. Only when they are durable do the messages count as finished."""
        while tokens := await self._refused.store():
            for token in tokens:
                await self._passing_over.note(position_of(token.message), SkipOutcome.SKIPPED)
                self._finish(token)
            self._note_progress()

    async def _collect(self) -> None:
        """Take in what is finished, and commit at intervals."""
        mailbox = self._context.mailbox
        interval_seconds = self._settings.intake_commit_interval_seconds
        commit_at = anyio.current_time() + interval_seconds
        while True:
            with anyio.move_on_after(commit_at - anyio.current_time()):
                envelopes = await mailbox.receive(_ACKNOWLEDGEMENTS_PER_TURN)
                for envelope in envelopes:
                    self._in_flight.remove(envelope.message.token)
                    self._finish(envelope.message.token)
                self._note_progress()
                mailbox.ack(envelopes)
            if anyio.current_time() >= commit_at:
                await self._commits.commit()
                commit_at = anyio.current_time() + interval_seconds

    def _finish(self, token: DeliveryToken) -> None:
        message = token.message
        written_ms = message.timestamp_ms if message.timestamp_ms >= 0 else None
        self._tracker.finish(message.topic, message.partition, message.offset, token.epoch, written_ms)

    def _note_progress(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()

    def _heartbeat(self) -> None:
        # To poll on is no progress as long as the other task is stuck in a commit, whose own end sends a heartbeat.
        if not self._commits.under_way:
            self._context.heartbeat()
