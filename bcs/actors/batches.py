"""The actor of one batch: commits all facts that wait for the batch together, and stores its summaries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import structlog

from bcs.actors.archive.client import ArchiveClient
from bcs.actors.commit_slots import CommitSlot, CommitSlots
from bcs.actors.dead_letters import DeadLetters, FailedEvent, note_dropped
from bcs.actors.isolate import isolate
from bcs.actors.messages import ApplyFacts, BatchCommand, DeliveryToken, MessagesAcked, StoreSummary
from bcs.actors.portions import portions
from bcs.actors.retry import retry
from bcs.actors.runtime import Runtime
from bcs.actors.spans import about_commit
from bcs.domain.state import BatchState, delta_of
from bcs.domain.times import microseconds
from bcs.errors import (
    BacklogFull,
    BatchErased,
    DeadLetterReason,
    OutboxFull,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TooManyEssays,
)
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.tracing import Span
from bcs.storage.ports import StateStore
from bcs.supervision import ActorContext, Envelope, serve_until_empty

# These limits bound a transaction, and so the time for which it blocks Redis. An event with more facts is alone in its
# transaction.
GROUP_COMMIT_LIMIT = 1000
GROUP_COMMIT_FACTS = 5000
_IDS_LOGGED = 10

# The reasons for dead letters in this module.
_FAILED: Final = "processing_failed"
_TOO_MANY_ESSAYS: Final = "too_many_essays"

log = structlog.stdlib.get_logger("bcs.batches", actor="batches")


class _StoppedEarly(Exception):
    """A stop was requested before the messages were durable, and the process goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchActor:
    """Serialises the writes of this process to a batch. One instance serves all batches, and has no state.

    :param archive_client: writes facts to the archive; None if there is no archive.
    :param finished: notifies the intake that a message's effect is durable.
    :param process_stops: True once the whole process is to stop.
    :param definitions: returns phase to the hash of its definition in use, for the phases whose definitions are kept.
    :param commit_slots: limits the commits at the same time, so that a backlog leaves store connections for requests.
    """

    runtime: Runtime
    store: StateStore
    archive_client: ArchiveClient | None
    dead_letters: DeadLetters
    finished: Callable[[MessagesAcked], None]
    process_stops: Callable[[], bool]
    definitions: Callable[[], Mapping[str, str]]
    commit_slots: CommitSlots

    async def run(self, context: ActorContext[BatchCommand]) -> None:
        """Serve a batch's mailbox until it is empty."""
        await hit(FailPoint.STARTING, context.name)
        slot = CommitSlot(self.commit_slots, context)

        async def handle(received: list[Envelope[BatchCommand]]) -> None:
            envelopes = [
                cast("Envelope[ApplyFacts]", each) for each in received if isinstance(each.message, ApplyFacts)
            ]
            if not envelopes:
                await self._store_summary(received[-1].message)
                return
            # The facts make every summary that waits with them outdated.
            if len(envelopes) == 1:
                await self._apply(context, slot, envelopes)
                return
            for group in portions(envelopes, _weight_of, GROUP_COMMIT_FACTS):
                await self._apply(context, slot, group)
                # A crash at a later group must not deliver this group again.
                context.ack(cast("list[Envelope[BatchCommand]]", group))

        async def on_max_deliveries(envelope: Envelope[BatchCommand]) -> None:
            slot.release()
            if isinstance(envelope.message, ApplyFacts):
                await self._dead_letter(
                    context, envelope.message, _FAILED, attempts=envelope.attempts, error=envelope.last_error
                )

        # The unacked envelopes stay in the mailbox, for the next run of the supervisor.
        try:
            with suppress(_StoppedEarly):
                await serve_until_empty(
                    context,
                    handle,
                    limit=GROUP_COMMIT_LIMIT,
                    on_max_deliveries=on_max_deliveries,
                    # What arrives while the actor waits for the slot goes into the same commit. The archive is written
                    # before a slot is needed.
                    before_receive=None if self.archive_client else slot.acquire,
                )
        finally:
            slot.release()

    async def _store_summary(self, command: BatchCommand) -> None:
        """Store a summary for other processes. They make it again if it could not be stored."""
        assert isinstance(command, StoreSummary)  # noqa: S101 (`handle` has checked it)
        with suppress(StoreError):
            stored = await self.store.store_summary(command.batch_id, command.summary, command.law)
            self.runtime.telemetry.commit_conflicts.inc(stored.conflicts)
            self.runtime.telemetry.commit_fallbacks.inc(stored.fallback)

    async def _apply(
        self, context: ActorContext[BatchCommand], slot: CommitSlot, envelopes: list[Envelope[ApplyFacts]]
    ) -> None:
        """Make the facts of a group durable; the facts that can't be stored become dead letters."""

        async def attempt(envelopes: Sequence[Envelope[ApplyFacts]]) -> None:
            # A caller that is gone got the answer that its facts were not stored.
            group = [envelope.message for envelope in envelopes if not envelope.caller_gone]
            try:
                if group:
                    consumer_group = self.runtime.settings.kafka_consumer_group_id
                    with self.runtime.tracer.span(about_commit, group, consumer_group) as span:
                        await self._make_durable(context, slot, group, span)
            except BatchErased as error:
                self._drop_erased(group, error)
            except TooManyEssays as error:
                await self._apply_without_excess(context, slot, envelopes, error)
            except StoreRefused:
                raise
            except StoreError as error:
                await self._refuse(context, group, error)

        async def on_refused(envelope: Envelope[ApplyFacts], error: StoreRefused) -> None:
            await self._refuse(context, [envelope.message], error)

        await isolate(envelopes, attempt, on_refused)

    async def _make_durable(
        self, context: ActorContext[BatchCommand], slot: CommitSlot, group: list[ApplyFacts], span: Span
    ) -> None:
        """Write a group to the archive, then to the store; then notify the senders."""
        await hit(FailPoint.BATCH_RECEIVED, context.name)
        if definitions := self.definitions():
            # Once for all attempts, so that all stores get the same facts, whatever a reload changes meanwhile.
            group = [command.recorded_under(definitions) for command in group]
        archived = False
        # The same for every attempt: the queue of the archive recognises a repeated entry by this time.
        now_us = microseconds(self.runtime.now()) if self.archive_client else 0

        async def make_durable(group: list[ApplyFacts]) -> None:
            nonlocal archived
            delta = delta_of(fact for command in group for fact in command.facts)
            # The archive first: what Redis has and then loses can be read again from the archive.
            if self.archive_client and not archived:
                # The check comes before the archive: after the write these facts can't be refused any more.
                await self._ensure_room(group[0].batch_id, delta)
                await self.archive_client.write_durably([command.entry(now_us, span.context) for command in group])
                archived = True
            await self._commit(slot, group, delta)

        try:
            await make_durable(group)
        except StoreError as error:
            if not error.retryable:
                raise
            span.fail(type(error).__name__)
            self._fail_asks(group, error)
            # Facts that the archive has must reach Redis, too. Otherwise phase reports are dropped: their callers have
            # the error.
            group = group if archived else [command for command in group if command.token]
            if not group:
                return
            # Facts that came from Kafka wait until the store is back.
            try:
                await self._retry(context, partial(make_durable, group), "commit facts")
            except (StoreUnavailable, BacklogFull):
                self._drop_at_process_stop()
                return
        await hit(FailPoint.BEFORE_REPLY, context.name)
        tokens: list[DeliveryToken] = []
        for command in group:
            if command.reply:
                command.reply.send(None)
            if command.token:
                tokens.append(command.token)
        if tokens:
            event_types = [token.event_type for token in tokens]
            for event_type in set(event_types):
                self.runtime.telemetry.events(event_type, "applied").inc(event_types.count(event_type))
            self.finished(MessagesAcked(tuple(tokens)))

    def _drop_at_process_stop(self) -> None:
        """Let go of messages that a stop came before: the next process reads them again.

        A supervisor that gives up stops its actors, too, and then runs again in the same process. Then nobody reads the
        messages again, so they must stay in the mailbox.

        :raises _StoppedEarly: the process does not stop.
        """
        if not self.process_stops():
            raise _StoppedEarly

    def _drop_erased(self, group: list[ApplyFacts], error: BatchErased) -> None:
        """Drop facts of an erased batch: a dead letter would keep what the law has erased."""
        for command in group:
            if command.reply:
                command.reply.fail(error)
        tokens = tuple(command.token for command in group if command.token)
        if not tokens:
            return
        note_dropped(self.runtime, error.batch_id, tokens)
        self.finished(MessagesAcked(tokens))

    async def _refuse(self, context: ActorContext[BatchCommand], group: list[ApplyFacts], error: StoreError) -> None:
        # Another attempt would fail in the same way. A crash would only delay the other messages.
        self._fail_asks(group, error)
        for command in group:
            await self._dead_letter(context, command, _FAILED, attempts=1, error=error)

    async def _apply_without_excess(
        self,
        context: ActorContext[BatchCommand],
        slot: CommitSlot,
        envelopes: Sequence[Envelope[ApplyFacts]],
        error: TooManyEssays,
    ) -> None:
        """Apply the envelopes, in their order, that the batch has room for; the others become dead letters."""
        room = error.limit - error.known
        new_essays, taken = set(error.new_essays), list[Envelope[ApplyFacts]]()
        for envelope in envelopes:
            new = new_essays.intersection(delta_of(envelope.message.facts).first_seen_us)
            if len(new) > max(room, 0):
                await self._dead_letter(context, envelope.message, _TOO_MANY_ESSAYS, attempts=1, error=error)
                continue
            room -= len(new)
            new_essays -= new
            taken.append(envelope)
        await self._apply(context, slot, taken)

    @staticmethod
    def _fail_asks(group: list[ApplyFacts], error: StoreError) -> None:
        """Callers over HTTP get the error at once."""
        for command in group:
            if command.reply:
                command.reply.fail(error)

    async def _ensure_room(self, batch_id: str, delta: BatchState) -> None:
        # While Redis is unreachable, the archive still accepts facts, and answers instead of Redis.
        with suppress(StoreUnavailable):
            await self.store.ensure_room(batch_id, delta.first_seen_us)

    async def _commit(self, slot: CommitSlot, group: list[ApplyFacts], delta: BatchState) -> None:
        batch_id = group[0].batch_id
        await slot.acquire()
        try:
            committed = await self.store.commit(batch_id, delta)
        finally:
            slot.release()
        if committed.conflicts:
            self.runtime.telemetry.commit_conflicts.inc(committed.conflicts)
        if committed.fallback:
            self.runtime.telemetry.commit_fallbacks.inc()
            ids = {command.correlation_id for command in group if command.correlation_id}
            log.warning(
                "commit_fell_back",
                batch_id=batch_id,
                conflicts=committed.conflicts,
                correlation_ids=sorted(ids)[:_IDS_LOGGED],
                summed_by=(),
            )

    async def _dead_letter(
        self,
        context: ActorContext[BatchCommand],
        command: ApplyFacts,
        reason: DeadLetterReason,
        *,
        attempts: int,
        error: BaseException | None,
    ) -> None:
        """Store a dead letter of a message that can't be applied."""
        token = command.token
        if token is None:
            return  # an ask: its caller has the error, and decides
        failed = FailedEvent(
            token=token,
            reason=reason,
            error_type=type(error).__name__,
            error_message=str(error),
            batch_id=command.batch_id,
            attempts=attempts,
        )
        dead_letter = await self.dead_letters.encode(failed)
        try:
            await self._retry(context, partial(self.dead_letters.store, [dead_letter]), "store a dead letter")
        except (StoreUnavailable, OutboxFull):
            self._drop_at_process_stop()
            return
        self.finished(MessagesAcked((token,)))

    async def _retry(
        self, context: ActorContext[BatchCommand], do: Callable[[], Awaitable[object]], doing: str
    ) -> None:
        await retry(
            context,
            do,
            StoreUnavailable,
            OutboxFull,
            BacklogFull,
            waits=self.runtime.waits,
            actor="batches",
            doing=doing,
            maximum_seconds=self.runtime.settings.retry_maximum_seconds,
        )


def _weight_of(envelope: Envelope[ApplyFacts]) -> int:
    return envelope.message.weight
