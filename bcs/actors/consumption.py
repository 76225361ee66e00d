"""One membership in the consumer group, from subscribing to leaving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bcs.actors.dead_letters import letter_of
from bcs.actors.messages import MessageFinished, Receipt, RecordFacts, decoded, message_of, position_of, written_at_ms
from bcs.actors.offsets import OffsetTracker
from bcs.actors.portions import Amount
from bcs.actors.skips import REASON as SKIPPED
from bcs.actors.skips import reason_of
from bcs.actors.turns import Turns
from bcs.actors.waits import READ_KAFKA
from bcs.contracts import topics
from bcs.contracts.dead_letters import unread_letter
from bcs.contracts.published import ConsumedMessage, OutboundMessage
from bcs.domain.errors import ClocksDiffer, StoreError, StoreUnavailable, UndecodableMessage
from bcs.domain.history import Position
from bcs.domain.skips import SkipOrder, SkipOutcome, WaitingSkip
from bcs.domain.times import format_timestamp
from bcs.failpoints import FailPoint
from bcs.kafka.causes import cause_of
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.offsets import CommitNote
from bcs.supervision import ActorContext

if TYPE_CHECKING:
    from bcs.actors.intake import Intake

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

ACTOR = "intake"
# What the intake may wait to do.
_DECIDE = "tell whether an event is ahead of time"
_BURY = "store dead letters"

_POLL_SECONDS = 0.2
# aiokafka's getmany() ignores its own timeout while the group rebalances, which can take as long as Kafka is away.
_POLL_LIMIT_SECONDS = 1.0
# A poll hands over to other tasks after so many messages, or so many bytes, or it would hold up HTTP: to decode a
# megabyte takes up to 50 ms.
_MESSAGES_PER_TURN = 100
_BYTES_PER_TURN = 128 * 1024
# A poll that weighed more is followed by smaller ones: what is read in one goes beyond the budgets by so much.
_BYTES_PER_POLL = 8 * 1024 * 1024
_LETTERS_PER_APPEND = 20
# They go to the store in one round trip, which has a deadline.
_BYTES_PER_APPEND = 1024 * 1024
_ACKNOWLEDGEMENTS_PER_TURN = 1000
_REVOKE_SECONDS = 5.0
_LAST_COMMIT_SECONDS = 1.0
_REMEMBERED_FACTOR = 20
# So soon the clocks are compared again, once they were found to differ.
_CLOCKS_SECONDS = 1.0


Commits = Mapping[tuple[str, int], tuple[int, str]]
"""Topic and partition to the offset that is to be committed, and what is to stand beside it."""


class Consumption(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Polls, hands over, and commits what has become durable.

    Two tasks: one polls, one collects what is finished and commits. They are apart because a rebalance holds up the one
    and waits for the other.
    """

    def __init__(self, intake: Intake, context: ActorContext[MessageFinished], consumer: IsolatingConsumer) -> None:
        self._intake = intake
        self._settings = intake.settings
        self._context = context
        self._consumer = consumer
        self._tracker = OffsetTracker(intake.epochs)
        self._letters: list[tuple[Receipt, UndecodableMessage]] = []
        # Of the first of these, kept until the store has them: by their content it knows letters that come again.
        self._made: list[OutboundMessage] = []
        self._notes: dict[tuple[str, int], CommitNote] = {}
        self._turns = Turns(messages=_MESSAGES_PER_TURN, size_bytes=_BYTES_PER_TURN)
        self._per_poll = Amount(intake.settings.kafka_max_poll_records)
        self._progress = anyio.Event()
        self._committing = anyio.Lock()
        self._over = False
        self._read_again_at = 0.0

    async def run(self) -> None:
        """Consume until a stop is asked for; then finish what was read, and commit it.

        Cancellation leaves messages unfinished and uncommitted; they are read again.

        :raises ExceptionGroup: of what made it impossible to go on.
        """
        intake = self._intake
        # An order may be about the very first message.
        await intake.skips.look()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._collect)
                group.start_soon(self._intake.skips.follow)
                self._consumer.subscribe(topics.CONSUMED, listener=self)
                while not self._context.stopping:
                    await self._poll()
                await self._drain()
                await self._commit()
                group.cancel_scope.cancel()
        finally:
            # Whatever ended it, what is finished need not be read again.
            with anyio.move_on_after(_LAST_COMMIT_SECONDS, shield=True):
                if (offsets := self._to_commit()) and self._is_member():
                    await self._commit_each(offsets)
            self._over = True
            intake.status.assigned = frozenset()
            self._note_progress()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is held of these partitions, within bounds, and drop the rest: its next owner reads it again."""
        partitions = [(topic, partition) for topic, partition in revoked]
        with anyio.move_on_after(_REVOKE_SECONDS):
            # Once all is over nothing gets finished any more, and to wait would hold up the consumer's stop.
            while self._tracker.unfinished(partitions) and not self._over:
                await self._progress.wait()
        if not self._over:
            await self._commit()
        self._tracker.revoke(partitions)
        self._intake.status.assigned -= frozenset(partitions)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin new ownerships."""
        partitions = [(topic, partition) for topic, partition in assigned]
        self._tracker.assign(partitions)
        self._intake.status.assigned |= frozenset(partitions)
        for key in partitions:
            self._notes.pop(key, None)

    async def _drain(self) -> None:
        """Let what was read become durable, for as long as that goes on: the next process reads the rest again."""
        patience_seconds = self._settings.intake_drain_patience_seconds
        patience_ends = anyio.current_time() + patience_seconds
        while (before := self._tracker.in_flight) and anyio.current_time() < patience_ends:
            await self._wait_for_progress()
            if self._tracker.in_flight < before:
                patience_ends = anyio.current_time() + patience_seconds

    async def _poll(self) -> None:
        self._beat()
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
                self._intake.status.go_on()
                self._intake.waits.end(ACTOR, _DECIDE)
        records: dict[TopicPartition, list[ConsumerRecord]] = {}
        with anyio.move_on_after(_POLL_LIMIT_SECONDS):
            records = await self._consumer.getmany(timeout_ms=wait_ms, max_records=self._per_poll.now)
        self._note_silence()
        self._note_missed()
        self._weigh(records.values())
        # Taken before anything else can run: a rebalance may begin new epochs while the messages are handed over.
        epochs = {key: self._tracker.epoch(*key) for key in records}
        if records:
            await self._intake.reach(FailPoint.INTAKE_RECEIVED, self._context.name)
        read_again = False
        for key, messages in records.items():
            read_again |= not await self._take(key, messages, epochs[key])
        if not read_again:
            self._note_passed()
        self._intake.status.stall(self._consumer.stalled)
        await self._bury()
        await self._skip_ordered()

    def _note_silence(self) -> None:
        """Tell that the intake waits for Kafka, also where that is frozen: then polls bring nothing, and no error."""
        status, waits = self._intake.status, self._intake.waits
        if status.connected is False:
            waits.begin(ACTOR, READ_KAFKA, status.problem, aloud=False)
        elif self._is_member():
            waits.end(ACTOR, READ_KAFKA)

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
            self._intake.telemetry.events_missed.labels(missed.topic).inc(count)
            # The next commit tells it to all replicas, and to those that come after them.
            self._notes[key] = self._note(key).with_missed(count, int(self._intake.now().timestamp() * 1000))

    def _note(self, key: TopicPartition) -> CommitNote:
        """What stands beside a partition's committed offset, or is to stand there with the next one."""
        if key not in self._notes:
            self._notes[key] = CommitNote.decode(self._consumer.committed_metadata(key))
        return self._notes[key]

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
        under_way, settings = self._intake.under_way, self._settings
        return (
            bool(self._letters)
            or anyio.current_time() < self._read_again_at
            or under_way.messages >= settings.intake_max_in_flight
            or under_way.bytes >= settings.intake_max_in_flight_bytes
            or under_way.facts >= settings.intake_max_in_flight_facts
            # What is finished behind something unfinished must be remembered too.
            or self._tracker.remembered >= settings.intake_max_in_flight * _REMEMBERED_FACTOR
        )

    async def _wait_for_progress(self) -> None:
        with anyio.move_on_after(_POLL_SECONDS):
            await self._progress.wait()
        self._beat()
        await self._bury()

    async def _take(self, key: TopicPartition, messages: list[ConsumerRecord], epoch: int | None) -> bool:
        """Hand messages over; False where some of them are to be read again."""
        for record in messages:
            if epoch is None or self._tracker.epoch(*key) != epoch:
                if epoch is None and key in self._consumer.assignment():
                    # Handed out before we were told of the assignment: passed over now, it would be lost.
                    self._consumer.seek(key, record.offset)
                return False
            if not await self._hand_over(record, epoch):
                # A rebalance may have come meanwhile: of a new ownership nothing may be passed over.
                if self._is_owned(record, epoch):
                    self._consumer.seek(key, record.offset)
                return False
            if self._turns.is_over_after(len(record.value or b"")):
                await anyio.lowlevel.checkpoint()
        return True

    async def _hand_over(self, record: ConsumerRecord, epoch: int) -> bool:
        """Hand a message's facts to its batch; False where it is to be read again later."""
        decoder, clocks = self._intake.decoder, self._intake.clocks
        message = message_of(record)
        event_type = decoder.event_type(record.topic)
        try:
            event = decoded(decoder, message, self._said_at_ms(record))
            self._intake.skips.refuse_ordered(message, event.batch_id, event.correlation_id)
            if event.facts and clocks.seems_ahead(event.at_us):
                ahead = await clocks.is_ahead(event.at_us)
                if not self._is_owned(record, epoch):
                    return False
                if ahead:
                    problem = f"the event's time, {format_timestamp(event.at_us)}, lies in the future"
                    raise UndecodableMessage("time_in_the_future", problem, event.batch_id, event.correlation_id)
        except UndecodableMessage as error:
            self._read(message)
            self._letters.append((Receipt(message, event_type, error.correlation_id, epoch), error))
            return True
        except (ClocksDiffer, StoreUnavailable) as error:
            self._read_again_at = anyio.current_time() + _CLOCKS_SECONDS
            self._intake.status.wait_for(str(error))
            # The status says so in the log.
            self._intake.waits.begin(ACTOR, _DECIDE, str(error), aloud=False)
            return False
        self._read(message)
        receipt = Receipt(message, event_type, event.correlation_id, epoch, event.event_id)
        if event.facts:
            await self._deliver(RecordFacts(event.batch_id, event.facts, receipt), receipt)
        else:
            self._intake.telemetry.events(event_type, "ignored").inc()
            self._finish(receipt)
            self._note_progress()
        return True

    def _is_owned(self, record: ConsumerRecord, epoch: int) -> bool:
        """True while the partition is owned as it was when the record was read."""
        return self._tracker.epoch(record.topic, record.partition) == epoch

    def _read(self, message: ConsumedMessage) -> None:
        self._tracker.read(message.topic, message.partition, message.offset, message.size_bytes)

    async def _deliver(self, command: RecordFacts, receipt: Receipt) -> None:
        under_way = self._intake.under_way
        under_way.add(command, receipt)
        delivered = False
        try:
            await self._intake.batches.deliver(command.batch_id, command)
            delivered = True
        finally:
            if not delivered:
                under_way.remove(receipt)

    def _said_at_ms(self, record: ConsumerRecord) -> int:
        said_at_ms = written_at_ms(record)
        return int(self._intake.now().timestamp() * 1000) if said_at_ms is None else said_at_ms

    async def _bury(self) -> None:
        """Make dead letters of what can't be decoded. Only when they are durable do the messages count as done."""
        while self._letters:
            if not self._made:
                self._made = await self._make_letters()
            try:
                await self._intake.outbox.append(self._made)
            except StoreError as error:
                self._intake.waits.begin(ACTOR, _BURY, str(error))
                return
            self._intake.waits.end(ACTOR, _BURY)
            chunk = self._letters[: len(self._made)]
            del self._letters[: len(chunk)]
            self._made = []
            for receipt, refusal in chunk:
                self._note_dead_letter(receipt, refusal)
                await self._note_skipped(position_of(receipt.message), SkipOutcome.SKIPPED)
                self._finish(receipt)
            self._note_progress()

    async def _skip_ordered(self) -> None:
        """Pass over what operators ordered to, and what no poll hands out: it can't be read, or does not get done."""
        dead = {position_of(receipt.message) for receipt, _ in self._letters}
        for waiting in self._intake.skips:
            at, tracker = waiting.order.position, self._tracker
            epoch = tracker.epoch(at.topic, at.partition)
            if epoch is None or at in dead:
                continue  # another replica has the partition, or a dead letter with its bytes waits for the store
            key = TopicPartition(at.topic, at.partition)
            stall, first_unfinished = self._consumer.stalled.get(key), tracker.position(at.topic, at.partition)
            unreadable = stall is not None and stall.offset == at.offset
            if unreadable or tracker.is_unfinished(at.topic, at.partition, at.offset):
                # A batch may hold it, which does not get done with it.
                held = self._intake.under_way.command_at(at, epoch)
                if not await self._store_letter(waiting.order, held) or tracker.epoch(at.topic, at.partition) != epoch:
                    return  # tried again with the next poll, by whoever has the partition then
                if unreadable:
                    tracker.read(at.topic, at.partition, at.offset, 0)
                    self._consumer.pass_over(key, at.offset)
                await self._note_skipped(at, SkipOutcome.SKIPPED if held else SkipOutcome.SKIPPED_UNREAD)
                tracker.finish(at.topic, at.partition, at.offset, epoch)
                self._note_progress()
            elif waiting.outcome is not None:
                # Until the commit, the message of a process that dies is read again: then the order must still stand.
                if tracker.is_committed(at.topic, at.partition, at.offset):
                    await self._close_order(waiting, waiting.outcome)
            elif first_unfinished is not None and at.offset < first_unfinished:
                await self._close_order(waiting, SkipOutcome.ALREADY_PROCESSED)

    async def _store_letter(self, order: SkipOrder, held: RecordFacts | None) -> bool:
        at, ordered_at = order.position, datetime.fromisoformat(order.ordered_at)
        detail = {"attempts": 1, "error_type": "SkipOrder", "error_message": reason_of(order)}
        # With the time of the order: a letter that is made again must be the same, for the outbox to know it.
        if held is None or held.receipt is None:
            letter = unread_letter(at.topic, at.partition, at.offset, SKIPPED, detail, ordered_at)
        else:
            limit_bytes = self._settings.kafka_max_message_bytes
            message, batch_id = held.receipt.message, held.batch_id
            letter = await letter_of(message, SKIPPED, detail, ordered_at, batch_id, limit_bytes=limit_bytes)
        try:
            await self._intake.outbox.append([letter])
        except StoreError as error:
            self._intake.waits.begin(ACTOR, _BURY, str(error))
            return False
        self._intake.waits.end(ACTOR, _BURY)
        self._intake.telemetry.dead_letters.labels(at.topic, SKIPPED).inc()
        return True

    async def _note_skipped(self, position: Position, outcome: SkipOutcome) -> None:
        try:
            await self._intake.skips.carried_out(position, outcome)
        except StoreError as error:
            # This process knows it all the same, and closes the order.
            log.debug("skip_not_noted", error=str(error))

    async def _close_order(self, waiting: WaitingSkip, outcome: SkipOutcome) -> None:
        try:
            await self._intake.skips.close(waiting, outcome)
        except StoreError as error:
            # It waits on, and is found to be done.
            log.debug("skip_order_not_closed", error=str(error))

    async def _make_letters(self) -> list[OutboundMessage]:
        """As many of the next letters as are stored in one round trip; at least one."""
        letters: list[OutboundMessage] = []
        size = 0
        for receipt, refusal in self._letters[:_LETTERS_PER_APPEND]:
            size += receipt.message.size_bytes
            if letters and size > _BYTES_PER_APPEND:
                break
            letters.append(
                await letter_of(
                    receipt.message,
                    refusal.reason,
                    {"attempts": 1, "error_type": type(refusal).__name__, "error_message": refusal.detail},
                    self._intake.now(),
                    refusal.batch_id,
                    limit_bytes=self._settings.kafka_max_message_bytes,
                )
            )
        return letters

    def _note_dead_letter(self, receipt: Receipt, error: UndecodableMessage) -> None:
        message = receipt.message
        self._intake.telemetry.dead_letters.labels(message.topic, error.reason).inc()
        self._intake.telemetry.events(receipt.event_type, "dead_lettered").inc()
        log.warning(
            "message_dead_lettered",
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            reason=error.reason,
            detail=error.detail,
            batch_id=error.batch_id,
            correlation_id=receipt.correlation_id,
            summed_by=("topic", "reason"),
        )

    async def _collect(self) -> None:
        """Take in what is finished, and commit at intervals."""
        mailbox = self._context.mailbox
        interval_seconds = self._settings.intake_commit_interval_seconds
        commit_at = anyio.current_time() + interval_seconds
        while True:
            with anyio.move_on_after(commit_at - anyio.current_time()):
                letters = await mailbox.receive(_ACKNOWLEDGEMENTS_PER_TURN)
                for letter in letters:
                    self._intake.under_way.remove(letter.message.receipt)
                    self._finish(letter.message.receipt)
                self._note_progress()
                mailbox.settle(letters)
            if anyio.current_time() >= commit_at:
                await self._commit()
                commit_at = anyio.current_time() + interval_seconds

    def _finish(self, receipt: Receipt) -> None:
        message = receipt.message
        written_ms = message.timestamp_ms if message.timestamp_ms >= 0 else None
        self._tracker.finish(message.topic, message.partition, message.offset, receipt.epoch, written_ms)

    def _note_progress(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()

    async def _commit(self) -> None:
        # One at a time, or an older commit could overtake a newer one.
        async with self._committing:
            offsets = self._to_commit()
            if not offsets:
                return
            if not self._is_member():
                log.info("offset_commit_failed", error="no longer a member of the group", summed_by=("error",))
                return
            await self._intake.reach(FailPoint.BEFORE_OFFSET_COMMIT, self._context.name)
            if await self._commit_each(offsets):
                await self._intake.reach(FailPoint.AFTER_OFFSET_COMMIT, self._context.name)

    def _to_commit(self) -> Commits:
        return {
            key: (offset, self._note_beside(TopicPartition(*key))) for key, offset in self._tracker.to_commit().items()
        }

    async def _commit_each(self, offsets: Commits) -> bool:
        """Commit these offsets; False where some could not be.

        What the broker refuses for one topic must not keep the others from being committed.
        """
        try:
            with anyio.fail_after(self._settings.kafka_request_timeout_seconds):
                await self._consumer.commit({TopicPartition(*key): commit for key, commit in offsets.items()})
        except (KafkaError, TimeoutError) as error:
            self._context.beat()
            by_topic: dict[str, dict[tuple[str, int], tuple[int, str]]] = {}
            for key, commit in offsets.items():
                by_topic.setdefault(key[0], {})[key] = commit
            if isinstance(error, TopicAuthorizationFailedError) and len(by_topic) > 1:
                return all([await self._commit_each(topic) for topic in by_topic.values()])
            # Not committed is only read again. After a rebalance it is someone else's to commit.
            log.info("offset_commit_failed", topics=sorted(by_topic), error=cause_of(error), summed_by=())
            return False
        self._tracker.committed({key: offset for key, (offset, _) in offsets.items()})
        self._context.beat()
        return True

    def _note_beside(self, key: TopicPartition) -> str:
        """What is to stand beside the offset that is committed next."""
        written_ms = self._tracker.written_ms(*key)
        if written_ms is not None:
            self._notes[key] = replace(self._note(key), written_ms=written_ms)
        return self._note(key).encode()

    def _beat(self) -> None:
        # To poll on is no progress as long as the other task is stuck in a commit, whose own end beats.
        if not self._committing.locked():
            self._context.beat()

    def _is_member(self) -> bool:
        # A replica that slept past its session learns of it here first. aiokafka would then commit without generation
        # or member, which Kafka takes while the group is empty: offsets could go back. There is no public way to know.
        coordinator: Any = self._consumer._coordinator
        return bool(coordinator.generation >= 0)
