"""The entries of a batch's history: the facts that arrived, and the answers that BCS gave."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from hashlib import blake2b
from uuid import UUID

from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.erasure import ErasureRecorded
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, PhaseInvalidated, PhaseOutcome
from bcs.domain.resolution import Reason
from bcs.domain.resolve_options import PLAIN, ResolveOptions

REPORTED = "PhaseReported"
"""The event type of a phase report, which comes over HTTP."""

INVALIDATED = "PhasesInvalidated"
"""The event type of an operator's invalidation, which comes over HTTP."""


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a message in Kafka."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class FactsRecorded:
    """Facts arrived, from Kafka or over HTTP.

    :param entry_id: the same each time the same message is consumed, so that the archive stores the entry once.
    :param at_us: when BCS received the facts, in microseconds since 1970 UTC; each fact has its own time besides.
    :param event_type: the name of the event's model, or `REPORTED` or `INVALIDATED`.
    :param event_id: the event envelope's, where it has one.
    :param position: the message in Kafka; None for facts that came over HTTP.
    :param asked_by: the caller over HTTP; None for a message from Kafka.
    :param reason: an operator's reason for an invalidation; None for other facts.
    :param traceparent: the span that made the entry, until the archive has stored it; None without tracing.
    """

    entry_id: UUID
    batch_id: str
    at_us: int
    _: KW_ONLY
    facts: tuple[Fact, ...]
    event_type: str
    correlation_id: str | None = None
    event_id: str | None = None
    position: Position | None = None
    asked_by: str | None = None
    reason: str | None = None
    traceparent: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PhaseDecided:
    """The answer about one phase.

    :param reason: a `Reason`'s value.
    :param reason_text: the reason as part of a sentence.
    """

    phase: str
    runs: bool
    reason: str
    reason_text: str

    @property
    def pruned(self) -> bool:
        """True if the phase was complete, and was not left out by the request."""
        return not self.runs and self.reason != Reason.NOT_SELECTED


@dataclass(frozen=True, slots=True)
class PipelineResolved:
    """A resolution: a caller asked which phases of a pipeline are still to run, and BCS answered.

    :param at_us: when, in microseconds since 1970 UTC.
    :param asked_by: the caller, as far as the request identifies the caller.
    :param pipeline: the requested pipeline.
    :param version: the version of the summary that was read.
    :param source: where the summary was read: `redis` or `postgresql`.
    :param registered: whether the batch was registered; None in older entries, which do not have this field.
    :param options: what the caller forced or left out.
    :param definitions: names the definitions that decided; None in older entries.
    :param traceparent: see `FactsRecorded`.
    """

    entry_id: UUID
    batch_id: str
    at_us: int
    _: KW_ONLY
    correlation_id: str
    asked_by: str
    pipeline: str
    decisions: tuple[PhaseDecided, ...]
    version: int
    source: str
    registered: bool | None = None
    options: ResolveOptions = PLAIN
    definitions: DefinitionsVersion | None = None
    traceparent: str | None = field(default=None, compare=False)


HistoryEntry = FactsRecorded | PipelineResolved


def has_facts(entry: HistoryEntry) -> bool:
    """True if answers depend on an entry; the others, such as entries about dead letters, only explain something."""
    return isinstance(entry, FactsRecorded) and bool(entry.facts)


_CHARACTERS_OF_A_FACT = 1024


def weight(entry: HistoryEntry) -> int:
    """The size of an entry for the archive, as a number of facts; long texts count as additional facts."""
    characters = len(entry.batch_id) + len(entry.correlation_id or "") + len(entry.asked_by or "")
    if isinstance(entry, PipelineResolved):
        characters += len(entry.pipeline) + sum(len(one.phase) + len(one.reason_text) for one in entry.decisions)
        if entry.options is not PLAIN:
            characters += sum(len(name) + sum(map(len, value)) for name, value in entry.options.given().items())
        return 1 + characters // _CHARACTERS_OF_A_FACT
    characters += len(entry.event_id or "") + len(entry.reason or "")
    facts = 0
    for fact in entry.facts:
        if isinstance(fact, EssayPhaseEnded):
            facts += 1
            characters += len(fact.essay_id)
        else:
            facts += facts_in(fact)
            characters += _characters_in(fact)
    return max(1, facts + characters // _CHARACTERS_OF_A_FACT)


def facts_in(fact: Fact) -> int:
    """How many facts a fact counts as: a fact that lists essays counts one more for each essay."""
    if isinstance(fact, PhaseOutcome):
        return 1 + len(fact.completed) + len(fact.failed)
    if isinstance(fact, EssaysRegistered):
        return 1 + len(fact.essay_ids)
    return 1


def _characters_in(fact: Fact) -> int:
    if isinstance(fact, PhaseOutcome):
        return sum(map(len, fact.completed)) + sum(map(len, fact.failed))
    if isinstance(fact, EssaysRegistered):
        return sum(map(len, fact.essay_ids))
    return len(fact.essay_id or "") if isinstance(fact, PhaseInvalidated) else 0


@dataclass(frozen=True, slots=True)
class ArchivedEntry:
    """An entry as the archive stores it.

    :param number: rises with every entry in the archive; a newer entry has a higher number.
    """

    number: int
    entry: HistoryEntry | ErasureRecorded


def consumed_entry_id(topic: str, partition: int, offset: int, timestamp_ms: int) -> UUID:
    """The id of the entry for a Kafka message.

    The offsets of a topic that was deleted and created again start at 0; the time distinguishes the new messages.

    :param timestamp_ms: the Kafka record's timestamp, in milliseconds since 1970 UTC.
    """
    name = f"{topic}\0{partition}\0{offset}\0{timestamp_ms}".encode()
    return UUID(bytes=blake2b(name, digest_size=16).digest())
