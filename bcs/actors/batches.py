"""The actor of one batch: takes everything that waits for the batch and commits it as one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

import anyio
import structlog

from bcs.actors.archive.writer import ArchiveClient
from bcs.actors.dead_letters import dead_letter_of
from bcs.actors.messages import ApplyFacts, MessageAcked
from bcs.actors.portions import portions
from bcs.actors.retry import retry
from bcs.domain.state import BatchState, delta_of
from bcs.errors import (
    BacklogFull,
    DeadLetterReason,
    OutboxFull,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TooManyEssays,
)
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import Waits
from bcs.storage.ports import OutboxEntrance, StateStore
from bcs.supervision import ActorContext, Envelope, serve_until_empty
from bcs.wire.decoding import microseconds

# Bound the size of a transaction, and so the time for which it holds up Redis. An event with more facts is alone.
GROUP_COMMIT_LIMIT = 1000
GROUP_COMMIT_FACTS = 5000
_IDS_LOGGED = 10

# Why a message becomes a dead letter here.
_FAILED: Final = "processing_failed"
_TOO_MANY_ESSAYS: Final = "too_many_essays"

log = structlog.stdlib.get_logger("bcs.batches", actor="batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchActor:
    """Serialises this process's writes to a batch. One instance serves all batches; it keeps no state of its own.

    :param archive_client: keeps facts in the permanent record; None where there is none.
    :param finished: tells the intake that a message's effect is durable.
    :param now: wall-clock time.
    :param waits: is told what the batches wait for.
    :param retry_maximum_seconds: the longest wait between tries while the store is away.
    :param commit_slots: bounds the commits at a time, so that a backlog leaves room for requests at the store.
    :param dead_letter_limit_bytes: the largest message that the broker takes.
    """

    store: StateStore
    outbox: OutboxEntrance
    archive_client: ArchiveClient | None
    telemetry: Telemetry
    finished: Callable[[MessageAcked], None]
    now: Callable[[], datetime]
    waits: Waits
    retry_maximum_seconds: float
    commit_slots: anyio.CapacityLimiter
    dead_letter_limit_bytes: int

    async def run(self, context: ActorContext[ApplyFacts]) -> None:
        """Serve a batch's mailbox until it is empty."""
        await hit(FailPoint.STARTING, context.name)

        async def handle(envelopes: list[Envelope[ApplyFacts]]) -> None:
            if len(envelopes) == 1:
                await self._record(context, envelopes)
                return
            for group in portions(envelopes, _weight_of, GROUP_COMMIT_FACTS):
                await self._record(context, group)
                # Not to be delivered again for what comes behind it.
                context.ack(group)

        async def on_max_deliveries(envelope: Envelope[ApplyFacts]) -> None:
            await self._dead_letter(
                context, envelope.message, _FAILED, attempts=envelope.attempts, error=envelope.last_error
            )

        await serve_until_empty(context, handle, limit=GROUP_COMMIT_LIMIT, on_max_deliveries=on_max_deliveries)

    async def _record(self, context: ActorContext[ApplyFacts], envelopes: list[Envelope[ApplyFacts]]) -> None:
        # The caller of such an ask is gone, and was told that the facts were not recorded.
        group = [envelope.message for envelope in envelopes if not envelope.caller_gone]
        if not group:
            return
        await hit(FailPoint.BATCH_RECEIVED, context.name)
        archived = False
        # The same however often it is tried: by that the queue before the record knows an entry again.
        now_us = microseconds(self.now())

        async def make_durable(group: list[ApplyFacts]) -> None:
            nonlocal archived
            delta = delta_of(fact for command in group for fact in command.facts)
            # First the record, so that nothing is in Redis that could not be read again once Redis has forgotten it.
            if self.archive_client and not archived:
                # What the record has can't be refused any more.
                await self._ensure_room(group[0].batch_id, delta)
                await self.archive_client.keep([command.entry(now_us) for command in group])
                archived = True
            await self._commit(context, group, delta)

        try:
            try:
                await make_durable(group)
            except StoreError as error:
                if not error.retryable:
                    raise
                self._fail_asks(group, error)
                # What is in the record must get into Redis too, whatever the caller was told.
                group = group if archived else [command for command in group if command.token]
                if not group:
                    return
                # What came from Kafka is kept until the store is back.
                try:
                    await self._retry(context, partial(make_durable, group), "commit facts")
                except (StoreUnavailable, BacklogFull):
                    return  # a stop was asked for; not acknowledged, these are read again by the next process
        except TooManyEssays as error:
            await self._record_without_excess(context, envelopes, error)
            return
        except StoreError as error:
            if isinstance(error, StoreRefused) and len(envelopes) > 1:
                # One of them spoils it for all: each on its own, and the others get through.
                for envelope in envelopes:
                    await self._record(context, [envelope])
                return
            # The same again would fail the same way: to die over it would only hold up the others.
            self._fail_asks(group, error)
            for command in group:
                await self._dead_letter(context, command, _FAILED, attempts=1, error=error)
            return
        await hit(FailPoint.BEFORE_REPLY, context.name)
        for command in group:
            if command.reply:
                command.reply.send(None)
            if command.token:
                self.telemetry.events(command.token.event_type, "applied").inc()
                self.finished(MessageAcked(command.token))

    async def _record_without_excess(
        self, context: ActorContext[ApplyFacts], envelopes: list[Envelope[ApplyFacts]], error: TooManyEssays
    ) -> None:
        """In their order, give the batch those that it has room for; the others become dead letters."""
        room = error.limit - error.known
        strangers, taken = set(error.strangers), list[Envelope[ApplyFacts]]()
        for envelope in envelopes:
            new = strangers.intersection(delta_of(envelope.message.facts).first_seen_us)
            if len(new) > max(room, 0):
                await self._dead_letter(context, envelope.message, _TOO_MANY_ESSAYS, attempts=1, error=error)
                continue
            room -= len(new)
            strangers -= new
            taken.append(envelope)
        await self._record(context, taken)

    @staticmethod
    def _fail_asks(group: list[ApplyFacts], error: StoreError) -> None:
        """Who asked over HTTP is told at once."""
        for command in group:
            if command.reply:
                command.reply.fail(error)

    async def _ensure_room(self, batch_id: str, delta: BatchState) -> None:
        # While Redis is away, what comes must get into the record all the same: that answers instead.
        with suppress(StoreUnavailable):
            await self.store.ensure_room(batch_id, delta.first_seen_us)

    async def _commit(self, context: ActorContext[ApplyFacts], group: list[ApplyFacts], delta: BatchState) -> None:
        batch_id = group[0].batch_id
        context.mark_idle()  # to wait for one's turn is not to hang
        async with self.commit_slots:
            context.heartbeat()
            committed = await self.store.commit(batch_id, delta)
        self.telemetry.commit_conflicts.inc(committed.conflicts)
        if committed.fallback:
            self.telemetry.commit_fallbacks.inc()
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
        context: ActorContext[ApplyFacts],
        command: ApplyFacts,
        reason: DeadLetterReason,
        *,
        attempts: int,
        error: BaseException | None,
    ) -> None:
        """Make a dead letter of a message that can't be applied."""
        token = command.token
        if token is None:
            return  # an ask: its caller was told, and decides itself
        detail = {"attempts": attempts, "error_type": type(error).__name__, "error_message": str(error)}
        message = await dead_letter_of(
            token.message,
            reason,
            detail,
            self.now(),
            command.batch_id,
            limit_bytes=self.dead_letter_limit_bytes,
        )
        try:
            await self._retry(context, partial(self.outbox.append, [message]), "store a dead letter")
        except (StoreUnavailable, OutboxFull):
            return  # a stop was asked for; not acknowledged, it is read again by the next process
        self.telemetry.dead_letters.labels(token.message.topic, reason).inc()
        self.telemetry.events(token.event_type, "dead_lettered").inc()
        log.error(
            "message_dead_lettered",
            batch_id=command.batch_id,
            correlation_id=token.correlation_id,
            topic=token.message.topic,
            partition=token.message.partition,
            offset=token.message.offset,
            reason=reason,
            **detail,
            summed_by=("topic", "reason"),
        )
        self.finished(MessageAcked(token))

    async def _retry(self, context: ActorContext[ApplyFacts], do: Callable[[], Awaitable[object]], doing: str) -> None:
        await retry(
            context,
            do,
            StoreUnavailable,
            OutboxFull,
            BacklogFull,
            waits=self.waits,
            actor="batches",
            doing=doing,
            maximum_seconds=self.retry_maximum_seconds,
        )


def _weight_of(envelope: Envelope[ApplyFacts]) -> int:
    return envelope.message.weight
