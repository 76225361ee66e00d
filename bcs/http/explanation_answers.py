"""The bodies of answers that explain a resolution, as types."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired

from bcs.domain.explained import Cause, FactKind
from bcs.domain.law import CompleteWhen
from bcs.domain.progress import Standing
from bcs.domain.resolution import Reason
from bcs.http.answers import Count, EndedAs, Mark, ResolvedPipeline, Seconds
from bcs.http.history_answers import KafkaPosition
from bcs.usecases.explain_pipeline import ArchiveAnswer
from bcs.wire.documents import Timestamp, described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other


@described
class AsOf(TypedDict):
    """How far the intake of all replicas was behind when the batch was read."""

    events_behind: Count | None
    """Events that waited to be read. Null before the first measurement."""
    seconds_behind: Seconds | None
    """For how long the oldest of them had waited, about. Null before the first measurement."""
    measured_at: Timestamp | None
    """When that was measured."""


@described
class CauseOfDecision(TypedDict):
    """A cause of a decision. A member is absent where the cause has no such data."""

    cause: Cause
    count: NotRequired[Count]
    """How many essays the cause is about."""
    essays: NotRequired[Sequence[str]]
    """The first of them, at most 20, in the order of their ids."""
    at: NotRequired[Timestamp]
    """The time of the fact, or of the newest of several."""
    status: NotRequired[str]
    """The status in the outcome."""
    phases: NotRequired[Sequence[str]]
    """The required phases that run again."""
    definition_before: NotRequired[str]
    """The hash of the definition before."""
    definition: NotRequired[str]
    """The hash of the definition in use."""


@described
class ArchivedFact(TypedDict):
    """Where the archive has the fact: the event, its place in Kafka, and when BCS learned of it."""

    number: int
    """The number of the entry in the history."""
    recorded_at: Timestamp
    event_type: str
    event_id: str | None
    correlation_id: str | None
    source: KafkaPosition | None
    """Null for a phase report."""
    reported_by: str | None
    """The caller of a phase report."""


@described
class FactThatDecided(TypedDict):
    """The fact that decided about a phase."""

    fact: FactKind
    phase: str
    essay_id: str | None
    at: Timestamp
    archived: ArchivedFact | None
    """Null if the archive does not have the fact, or has it only among very many newer entries."""


@described
class EndedPhase(TypedDict):
    """The newest outcome of a phase that still counts, without its lists of essays."""

    status: str
    at: Timestamp
    speaks_for_all: bool
    """True if the outcome lists no essay, and so counts for every essay that was due."""


@described
class ExplainedEssay(TypedDict):
    """The standing of an essay in a phase."""

    essay_id: str
    standing: Standing
    first_seen: Timestamp
    mark: Mark | None


@described
class OlderDefinition(TypedDict):
    """The phase is complete, but not by the facts alone that were recorded under the definition in use."""

    definition: str
    """The hash of the definition under which the newest of the other facts were recorded."""
    at: Timestamp
    """The time of the newest of them."""
    completed_since: Count
    """Essays that completed the phase later."""


@described
class ExplainedPhase(TypedDict):
    """The decision about one phase, and everything that implies it. The counts are those of the whole batch."""

    phase: str
    decision: Literal["run", "prune", "leave_out"]
    reason: Reason
    """The same as in `decisions`."""
    sentence: str
    """The decision and its causes, for a person."""
    causes: Sequence[CauseOfDecision]
    """All causes, the most important one first."""
    requires: Sequence[str]
    rerun_with_dependencies: bool
    """True if the phase runs again when a phase that it requires runs again."""
    runs_again_after: Sequence[str]
    complete_when: CompleteWhen
    rerun_when_changed: bool
    """True if the phase runs again when its definition changes."""
    definition: str
    """The hash of the definition in use."""
    older_definition: OlderDefinition | None
    """Set if the phase is complete only by facts of an older definition, and is to run again for that."""
    complete: bool
    """Whether the phase is complete, whatever the request forces or assumes."""
    complete_since: Timestamp | None
    assumed: EndedAs | None
    """How the request assumes that the phase ended."""
    forced: bool
    completed: Count
    """Essays that completed the phase."""
    failed: Count
    """Essays that failed in the phase."""
    failed_before: Count
    """Essays without a mark for this phase that failed in a phase that it requires."""
    left_out: Count
    """Other essays without a mark for this phase that had joined before the newest outcome."""
    missing: Count
    """Expected essays that no event has named and no report covers."""
    covered_by_report: bool
    """True if a phase report counts for every known essay, and for the expected essays that no event has named."""
    report: Mark | None
    outcome: EndedPhase | None
    decided_by: FactThatDecided | None
    """The newest fact that decided; null if only something is missing."""
    essays: NotRequired[Sequence[ExplainedEssay]]
    """With `explain=full`: the essays of this page, in the order of their ids."""


@described
class Explanation(TypedDict):
    """Why each phase of the requested pipeline runs or not, in the order of the pipeline."""

    as_of: AsOf
    registration_required: bool
    """True if a batch that is not registered is never complete by counting."""
    state_version: int | None
    """Null if the archive answered."""
    archive: ArchiveAnswer
    """Whether the archive answered which events the facts came from."""
    phases: Sequence[ExplainedPhase]
    next: NotRequired[str | None]
    """With `explain=full`: the path and query of the next page of essays."""


@described
class ResolvedWithOptions(ResolvedPipeline):
    """The phases that a batch still needs. The members below are in the answer only if the request asks for them."""

    dry_run: NotRequired[bool]
    """True if the request had no effect."""
    options: NotRequired[Mapping[str, str | Sequence[str]]]
    """What the request forces, leaves out or assumes."""
    left_out_phases: NotRequired[Sequence[str]]
    """The phases that the request leaves out."""
    explanation: NotRequired[Explanation]
