"""The bodies of answers about histories. See `answers.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NotRequired

from pydantic import Field

from bcs.http.answers import Count, EndedAs
from bcs.http.definition_answers import DefinitionsVersion
from bcs.wire.documents import Timestamp, described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other


@described
class EssayPhaseEnded(TypedDict):
    """A phase ended for one essay."""

    fact: Literal["essay_phase_ended"]
    phase: str
    essay_id: str
    outcome: EndedAs
    at: Timestamp


@described
class PhaseOutcome(TypedDict):
    """A service's event about how a phase ended for the essays that the event lists."""

    fact: Literal["phase_outcome"]
    phase: str
    status: str
    completed: Sequence[str]
    failed: Sequence[str]
    speaks_for_all: bool
    at: Timestamp


@described
class PhaseReported(TypedDict):
    """A phase report, for every essay that had joined by then."""

    fact: Literal["phase_reported"]
    phase: str
    outcome: EndedAs
    at: Timestamp


@described
class PhaseInvalidated(TypedDict):
    """Older facts about a phase no longer count."""

    fact: Literal["phase_invalidated"]
    phase: str
    essay_id: str | None
    """The only essay whose facts are meant; null for all essays."""
    at: Timestamp


@described
class RecordedUnder(TypedDict):
    """Facts about how a phase ended, up to this time, were recorded while this definition of the phase was in use."""

    fact: Literal["recorded_under"]
    phase: str
    definition: str
    at: Timestamp


@described
class EssaysRegistered(TypedDict):
    """The essays of the batch were registered."""

    fact: Literal["essays_registered"]
    essay_ids: Sequence[str]
    expected_count: Count
    at: Timestamp


Fact = Annotated[
    EssayPhaseEnded | PhaseOutcome | PhaseReported | PhaseInvalidated | RecordedUnder | EssaysRegistered,
    Field(discriminator="fact"),
]


@described
class KafkaPosition(TypedDict):
    """The place of a message in Kafka."""

    topic: str
    partition: int
    offset: int


@described
class FactsEntry(TypedDict):
    """Facts arrived, from Kafka or over HTTP."""

    number: int
    recorded_at: Timestamp
    kind: Literal["facts"]
    correlation_id: str | None
    event_type: str
    event_id: str | None
    source: KafkaPosition | None
    """Null for facts that came over HTTP. Of a replay (`DeadLetterReplayed`, without facts): the dead letter."""
    reported_by: str | None
    """The caller of a phase report or of an invalidation, and the operator who replayed a dead letter."""
    facts: Sequence[Fact]
    reason: NotRequired[str]
    """Of an invalidation, and of a dead letter (`DeadLettered`, without facts)."""


@described
class ErasureEntry(TypedDict):
    """An operator erased the batch with its history."""

    number: int
    recorded_at: Timestamp
    kind: Literal["erasure"]
    correlation_id: str
    erased_by: str
    reason: str
    refused_until: Timestamp
    """Nothing about the batch is accepted before this time."""


@described
class RecordedDecision(TypedDict):
    """The decision about one phase, as it was answered."""

    phase: str
    runs: bool
    reason: str
    reason_text: str


@described
class ResolutionEntry(TypedDict):
    """A caller asked which phases of a pipeline are still to run, and BCS answered."""

    number: int
    recorded_at: Timestamp
    kind: Literal["resolution"]
    correlation_id: str
    requested_by: str
    pipeline: str
    final_pipeline: Sequence[str]
    pruned_phases: Sequence[str]
    decisions: Sequence[RecordedDecision]
    registered: bool | None
    """Null in entries of older releases."""
    definitions: DefinitionsVersion | None
    """The pipeline definitions that decided. Null in entries of older releases."""
    state_version: int
    source: str
    options: NotRequired[Mapping[str, str | Sequence[str]]]
    """What the caller forced (`force`) or left out (`until`, `only`, `exclude`); absent for a plain request."""


Entry = Annotated[FactsEntry | ResolutionEntry | ErasureEntry, Field(discriminator="kind")]


@described
class History(TypedDict):
    """A page of a batch's history, newest first."""

    batch_id: str
    entries: Sequence[Entry]
    next: str | None
    """The path and query of the page with older entries."""
    scanned: NotRequired[Count]
    """How many entries were looked at; only where not all are wanted. Such a page may be empty and not the last."""


@described
class FoundEntry(TypedDict):
    """An entry of the history of a batch."""

    batch_id: str
    entry: Entry


@described
class FoundHistory(TypedDict):
    """A page of entries of all batches with a correlation id, newest first."""

    correlation_id: str
    entries: Sequence[FoundEntry]
    scanned: Count
    """How many entries were looked at. A page may be empty and not the last."""
    next: str | None
    """The path and query of the page with older entries."""
