"""What the actors say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.contracts.published import ConsumedMessage
from bcs.domain.facts import Fact
from bcs.supervision import Reply


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a consumed message, to be handed back once its effect is durable.

    :param correlation_id: of the envelope, where it could be read.
    :param epoch: which of our ownerships of the partition it was read in; a receipt of an older one is worthless.
    """

    message: ConsumedMessage
    event_type: str
    correlation_id: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """To a batch's actor: make these facts durable.

    :param receipt: the Kafka message that they came from.
    :param reply: who waits for it.
    """

    batch_id: str
    facts: tuple[Fact, ...]
    receipt: Receipt | None = None
    reply: Reply[None] | None = None


@dataclass(frozen=True, slots=True)
class MessageFinished:
    """To the intake: the effect of this message is durable, or it is a durable dead letter."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class OutboxGrew:
    """To the publisher: there is something to publish."""


@dataclass(frozen=True, slots=True)
class RenderMetrics:
    """To the metrics actor: the registry's text, please."""

    reply: Reply[bytes]
