"""The actor of one batch: takes everything that waits for the batch and commits it as one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from bcs.actors.messages import MessageFinished, RecordFacts
from bcs.actors.patience import patiently
from bcs.contracts.published import dead_letter
from bcs.domain.errors import StoreError, StoreUnavailable
from bcs.domain.state import delta_of
from bcs.store.base import Outbox, StateStore
from bcs.supervision import ActorContext, Letter, serve_until_empty
from bcs.telemetry import Telemetry

# Bounds the size of a transaction, and so the time for which it holds up Redis.
GROUP_COMMIT_LIMIT = 1000

log = structlog.stdlib.get_logger("bcs.batches")


@dataclass(frozen=True, slots=True)
class BatchActor:
    """Serialises this process's writes to a batch. One instance serves all batches; it keeps no state of its own.

    :param finished: tells the intake that a message's effect is durable.
    :param outbox_grew: tells the publisher that there is something to publish.
    :param now: wall-clock time.
    :param retry_maximum_seconds: the longest wait between tries while the store is away.
    """

    store: StateStore
    outbox: Outbox
    telemetry: Telemetry
    finished: Callable[[MessageFinished], None]
    outbox_grew: Callable[[], None]
    now: Callable[[], datetime]
    retry_maximum_seconds: float

    async def run(self, context: ActorContext[RecordFacts]) -> None:
        """Serve a batch's mailbox until it is empty."""

        async def handle(letters: list[Letter[RecordFacts]]) -> None:
            await self._record(context, letters)

        async def exhausted(letter: Letter[RecordFacts]) -> None:
            await self._bury(context, letter)

        await serve_until_empty(context, handle, limit=GROUP_COMMIT_LIMIT, exhausted=exhausted)

    async def _record(self, context: ActorContext[RecordFacts], letters: list[Letter[RecordFacts]]) -> None:
        # Nobody waits for an abandoned ask any more, and its caller was told that it was not recorded.
        group = [letter.message for letter in letters if not letter.abandoned]
        if not group:
            return
        try:
            await self._commit(group)
        except StoreUnavailable as error:
            # Who asked over HTTP is told at once; what came from Kafka is kept until the store is back.
            for command in group:
                if command.reply:
                    command.reply.fail(error)
            group = [command for command in group if command.receipt]
            if not group:
                return
            retrying = patiently(
                context, StoreUnavailable, maximum_seconds=self.retry_maximum_seconds, doing="commit facts"
            )
            await retrying(self._commit, group)
        for command in group:
            if command.reply:
                command.reply.send(None)
            if command.receipt:
                self.telemetry.events.labels(command.receipt.event_type, "applied").inc()
                self.finished(MessageFinished(command.receipt))

    async def _commit(self, group: list[RecordFacts]) -> None:
        batch_id = group[0].batch_id
        committed = await self.store.commit(batch_id, delta_of(fact for command in group for fact in command.facts))
        self.telemetry.commit_conflicts.inc(committed.conflicts)
        if committed.fallback:
            self.telemetry.commit_fallbacks.inc()
            log.warning("commit_fell_back", batch_id=batch_id, conflicts=committed.conflicts)

    async def _bury(self, context: ActorContext[RecordFacts], letter: Letter[RecordFacts]) -> None:
        """Make a dead letter of a message over which this actor has died too often."""
        receipt = letter.message.receipt
        if receipt is None:
            return  # an ask: its caller learned of the death, and decides itself
        error = letter.last_error
        detail = {
            "attempts": letter.attempts,
            "error_type": type(error).__name__,
            "error_message": str(error),
        }
        message = dead_letter(receipt.message, "processing_failed", detail, self.now(), letter.message.batch_id)
        retrying = patiently(
            context,
            StoreError,
            maximum_seconds=self.retry_maximum_seconds,
            doing="store a dead letter",
        )
        await retrying(self.outbox.append, [message])
        self.telemetry.dead_letters.labels(receipt.message.topic, "processing_failed").inc()
        self.telemetry.events.labels(receipt.event_type, "dead_lettered").inc()
        log.error(
            "message_dead_lettered",
            batch_id=letter.message.batch_id,
            topic=receipt.message.topic,
            partition=receipt.message.partition,
            offset=receipt.message.offset,
            reason="processing_failed",
            **detail,
        )
        self.finished(MessageFinished(receipt))
        self.outbox_grew()
