"""What is kept of the past of a batch: the facts that became known, and what was answered because of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from hashlib import blake2b
from uuid import UUID

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, PhaseInvalidated, PhaseOutcome

REPORTED = "PhaseReported"
"""The event type of a phase that was reported over HTTP."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message lies in Kafka."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class FactsRecorded:
    """Facts became known.

    :param entry_id: the same however often the same message is consumed, so that it is kept once.
    :param at_us: when they became known here, in microseconds since 1970 UTC; each fact has a time of its own.
    :param event_type: the model's name, or `REPORTED`.
    :param event_id: of the envelope, where it has one.
    :param position: None for what was reported over HTTP.
    :param asked_by: who reported it; None for what came from Kafka.
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


@dataclass(frozen=True, slots=True)
class PhaseDecided:
    """What was answered about one phase.

    :param reason: a `Reason`'s value.
    :param reason_text: the reason as part of a sentence.
    """

    phase: str
    runs: bool
    reason: str
    reason_text: str


@dataclass(frozen=True, slots=True)
class PipelineResolved:
    """Someone asked which phases of a pipeline are still to run, and was answered.

    :param at_us: when, in microseconds since 1970 UTC.
    :param asked_by: the caller, as far as the request tells.
    :param pipeline: what was asked for.
    :param version: of the summary that was read.
    :param source: where the summary was read: `redis` or `postgresql`.
    :param registered: whether the batch was registered; None in entries that did not keep it.
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


HistoryEntry = FactsRecorded | PipelineResolved

_CHARACTERS_OF_A_FACT = 1024


def weight(entry: HistoryEntry) -> int:
    """How much there is to keep of an entry: about as many facts, where a long text counts as several."""
    characters = len(entry.batch_id) + len(entry.correlation_id or "") + len(entry.asked_by or "")
    if isinstance(entry, PipelineResolved):
        characters += len(entry.pipeline) + sum(len(one.phase) + len(one.reason_text) for one in entry.decisions)
        return 1 + characters // _CHARACTERS_OF_A_FACT
    characters += len(entry.event_id or "")
    facts = 0
    for fact in entry.facts:
        if isinstance(fact, EssayPhaseEnded):
            facts += 1
            characters += len(fact.essay_id)
        else:
            facts += facts_in(fact)
            characters += _characters_in(fact)
    return facts + characters // _CHARACTERS_OF_A_FACT


def facts_in(fact: Fact) -> int:
    """As how many facts one counts that names many essays."""
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
class KeptEntry:
    """An entry as it stands in the record.

    :param number: rises with every entry of the record; newer ones have higher ones.
    """

    number: int
    entry: HistoryEntry


def consumed_entry_id(topic: str, partition: int, offset: int, timestamp_ms: int) -> UUID:
    """The id of the entry for a Kafka message.

    A topic that was deleted and made anew counts its offsets from 0 again; the time keeps its messages apart.

    :param timestamp_ms: the Kafka record's own time.
    """
    name = f"{topic}\0{partition}\0{offset}\0{timestamp_ms}".encode()
    return UUID(bytes=blake2b(name, digest_size=16).digest())
