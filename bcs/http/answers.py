"""The bodies of answers, as types: mypy checks the handlers with them, and `openapi.py` describes them to callers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired

from pydantic import Field, WithJsonSchema

from bcs.domain.erasure import LeftOver, What
from bcs.domain.finding import Condition
from bcs.domain.law import CompleteWhen
from bcs.domain.progress import Standing
from bcs.domain.resolution import Reason
from bcs.storage.ports import MEMORY, POSTGRESQL, REDIS
from bcs.wire.documents import Timestamp, described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Source = Annotated[str, WithJsonSchema({"type": "string", "enum": [REDIS, POSTGRESQL, MEMORY]})]
Status = Literal["healthy", "degraded", "unhealthy"]
EndedAs = Literal["completed", "failed"]
Warnings = Sequence[str]


@described
class ChangedDefinition(TypedDict):
    """The definition of a phase has changed since the phase completed."""

    before: str
    """The hash of the definition under which the newest of the other facts were recorded."""
    after: str
    """The hash of the definition in use."""
    completed_at: Timestamp
    """The time of the newest fact under another definition."""
    completed_since: Count
    """Essays that completed the phase later."""


@described
class Decision(TypedDict):
    """The decision about one phase of the pipeline, and its reason."""

    phase: str
    runs: bool
    reason: Reason
    reason_text: str
    """The reason as part of a sentence."""
    complete_when: CompleteWhen
    completed: Count
    """Essays that completed the phase."""
    failed: Count
    """Essays that failed in the phase, or in a phase that it requires."""
    left_out: Count
    """Essays that the phase's newest outcome does not list."""
    definition_changed: NotRequired[ChangedDefinition]
    """Of the reason `definition_changed`."""


class Resolution(TypedDict):
    """The phases that a batch still needs."""

    batch_id: str
    final_pipeline: Annotated[
        Sequence[str],
        Field(description="The phases to run, in an order in which they can run. Empty if all phases are complete."),
    ]
    pruned_phases: Annotated[
        Sequence[str],
        Field(description="The complete phases, which need not run. BCS announces each with a `PhaseSkippedV1` event."),
    ]
    analysis_summary: Annotated[str, Field(description="The whole answer in a sentence or two, for a person.")]
    registered: Annotated[bool, Field(description="False if only the essays that were seen so far can be counted.")]
    essays_known: Count
    essays_expected: Count | None
    decisions: Sequence[Decision]


@described
class ResolvedPipeline(Resolution):
    """The phases that a batch still needs."""

    source: Source
    """The store that answered."""
    warnings: NotRequired[Warnings]
    """Fields of the request that BCS does not read, and that look like a field that it reads."""


@described
class PhaseRecorded(TypedDict):
    """The phase report is durable."""

    status: Literal["recorded"]
    batch_id: str
    phase_name: str
    warnings: NotRequired[Warnings]
    """Fields of the request that BCS does not read, and that look like a field that it reads."""


@described
class TakenBackEssay(TypedDict):
    """An essay whose completion or failure no longer counts."""

    essay_id: str
    outcome: EndedAs
    at: Timestamp


@described
class TakenBack(TypedDict):
    """What no longer counts of a phase."""

    phase: str
    at: Timestamp
    """Facts of the phase that are older no longer count. A newer completion counts."""
    was_complete: bool
    complete: bool
    """True where the phase is complete in spite of it."""
    completed: Count
    """Essays whose completion no longer counts."""
    failed: Count
    """Essays whose failure no longer counts."""
    report: Mark | None
    """The phase report that no longer counts for any essay."""
    outcome: Ending | None
    """The newest outcome, if it no longer counts for any essay."""
    essays: Sequence[TakenBackEssay]
    """The first 100 of these essays, in the order of their ids."""


@described
class PhasesInvalidated(TypedDict):
    """What was taken back, or for a dry run what would be."""

    batch_id: str
    dry_run: bool
    """True if nothing was changed."""
    phases: Sequence[TakenBack]
    no_longer_complete: Sequence[str]
    """The phases that were complete until now, also those that require one of the named phases."""
    warnings: NotRequired[Warnings]
    """Fields of the request that BCS does not read, and that look like a field that it reads."""


@described
class ExpectedEssays(TypedDict):
    """How many essays the batch was registered with, and when."""

    count: Count
    at: Timestamp


@described
class KnownEssay(TypedDict):
    """An essay of the batch."""

    essay_id: str
    first_seen: Timestamp


@described
class Mark(TypedDict):
    """How a phase ended, and when."""

    outcome: EndedAs
    at: Timestamp


@described
class Ending(TypedDict):
    """The newest outcome of a phase that still counts, without its lists of essays."""

    status: str
    at: Timestamp


@described
class BlockingEssay(TypedDict):
    """An essay that keeps a phase from being complete."""

    essay_id: str
    reason: Standing
    first_seen: Timestamp
    mark: Mark | None


@described
class Phase(TypedDict):
    """The progress of a phase, and the first essays that block it."""

    phase: str
    complete: bool
    complete_when: CompleteWhen
    completed: Count
    failed: Count
    failed_before: Count
    """Essays without a mark for this phase that failed in a phase that it requires."""
    left_out: Count
    """Other essays without a mark for this phase that had joined before the newest outcome."""
    outstanding: Count
    """Known essays without a mark for this phase."""
    missing: Count
    """Expected essays that no event has named and no report covers."""
    newest_mark_at: Timestamp | None
    report: Mark | None
    outcome: Ending | None
    blocking_essays_total: Count
    blocking_essays: Sequence[BlockingEssay]
    """As many as a page has."""


@described
class Batch(TypedDict):
    """What is known of a batch, and which essays hold its phases back. The counts are those of the whole batch."""

    batch_id: str
    version: int | None
    """Rises with every commit to the batch. Null if the archive answered."""
    source: Source
    registered: bool
    expected: ExpectedEssays | None
    essays_known: Count
    known_essays: Sequence[KnownEssay]
    """The essays of this page, in the order of their ids."""
    next: str | None
    """The path and query of the next page."""
    phases: Sequence[Phase]


@described
class FoundPhase(TypedDict):
    """How far a phase is, without its essays."""

    phase: str
    complete: bool
    completed: Count
    failed: Count
    failed_before: Count
    """Essays without a mark for this phase that failed in a phase that it requires."""
    left_out: Count
    """Other essays without a mark for this phase that had joined before the newest outcome."""
    blocked_by_failures: bool


@described
class FoundBatch(TypedDict):
    """A batch that was found, and how it stands."""

    batch_id: str
    changed_at: Timestamp
    """When its last facts came."""
    registered: bool
    essays_known: Count
    essays_expected: Count | None
    states: Sequence[Condition]
    """All that hold."""
    phases: Sequence[FoundPhase]
    """Those that count, or else all with facts."""


@described
class Batches(TypedDict):
    """A page of batches, the last changed first."""

    batches: Sequence[FoundBatch]
    unreadable: Sequence[str]
    """Batches whose stored facts can't be read; a person has to look."""
    scanned: Count
    """How many batches this page looked at."""
    source: Source
    next: str | None
    """The path and query of the next page. A page may be empty and not the last."""


@described
class Removed(TypedDict):
    """A part of the batch that was removed, or for a dry run would be."""

    place: Source
    what: What
    count: Count


@described
class LeftBehind(TypedDict):
    """Something that is left, or may be left, of the batch."""

    what: LeftOver
    why: str
    """The reason, and what to do about it."""


@described
class BatchErased(TypedDict):
    """What was erased of a batch, or for a dry run what would be."""

    batch_id: str
    dry_run: bool
    """True if nothing was changed."""
    erased_at: Timestamp
    refused_until: Timestamp
    """Events about the batch are dropped, and requests about it refused, until then."""
    erased_by: str
    reason: str
    removed: Sequence[Removed]
    left: Sequence[LeftBehind]


@described
class FieldError(TypedDict):
    """A field of the request, and what is wrong with it."""

    field: str
    """The path of the field, with dots; `body` for the document as a whole."""
    problem: str


@described
class FactInTheWay(TypedDict):
    """A known fact of the phase that lies in the future."""

    fact: str
    essay_id: str | None
    at: Timestamp


@described
class NeededPhase(TypedDict):
    """A phase that the request leaves out, that is not complete, and that running phases require."""

    phase: str
    needed_by: Sequence[str]
    reason_text: str
    """Why it is not complete, as part of a sentence."""


@described
class Problem(TypedDict):
    """An error (RFC 9457)."""

    type: str
    """`urn:bcs:problem:` and the name of the problem. The names do not change; docs/problems.md explains each."""
    title: str
    status: int
    detail: str
    """What is wrong this time. It never repeats the caller's text."""
    correlation_id: str
    errors: NotRequired[Sequence[FieldError]]
    """Of `invalid-request`: each invalid field."""
    warnings: NotRequired[Warnings]
    """Of `invalid-request`: unknown fields that look like a known field."""
    allowed_methods: NotRequired[Sequence[str]]
    """Of `method-not-allowed`."""
    known_actors: NotRequired[Sequence[str]]
    """Of `unknown-actor`: the actors at the top."""
    known_pipelines: NotRequired[Sequence[str]]
    """Of `unknown-pipeline`: all phases and pipelines."""
    phases_needing_prompt: NotRequired[Sequence[str]]
    """Of `prompt-required`."""
    scope: NotRequired[str]
    """Of `forbidden`: the scope that the caller does not have."""
    erased_at: NotRequired[Timestamp]
    """Of `batch-erased`."""
    refused_until: NotRequired[Timestamp]
    """Of `batch-erased`: events about the batch are dropped until then."""
    problems: NotRequired[Sequence[str]]
    """Of `definitions-refused`: what is wrong with the pipeline file."""
    in_use: NotRequired[str]
    """Of `definitions-refused`: the version and the hash of the definitions that stay in use."""
    phase: NotRequired[str]
    """Of `report-outdated` and `invalidation-outdated`."""
    in_the_way: NotRequired[FactInTheWay]
    """Of `report-outdated` and `invalidation-outdated`."""
    needed_phases: NotRequired[Sequence[NeededPhase]]
    """Of `needed-phase-left-out`."""
    events_behind: NotRequired[Count | None]
    """Of `intake-behind`: events that wait to be read. Null before the first measurement."""
    seconds_behind: NotRequired[Seconds | None]
    """Of `intake-behind`: for how long the oldest of them has waited, about."""
