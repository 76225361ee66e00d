"""The lines of the answer to a request for a plan, as types."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NotRequired

from bcs.domain.resolution import Reason
from bcs.http.answers import Count, Problem, Source, Warnings
from bcs.http.definition_answers import DefinitionsVersion
from bcs.http.explanation_answers import AsOf
from bcs.wire.documents import described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other


@described
class PlannedBatch(TypedDict):
    """A line for a batch: the phases that it would need."""

    batch_id: str
    final_pipeline: Sequence[str]
    """The phases to run, in an order in which they can run."""
    pruned_phases: Sequence[str]
    left_out_phases: Sequence[str]
    """The phases that the request leaves out."""
    reasons: Mapping[str, Reason]
    """The reason of each phase."""
    outstanding: Mapping[str, Count]
    """Of each phase that runs: how many essays have not completed it."""
    known: bool
    """False if nothing is known of the batch."""
    registered: bool
    essays_known: Count
    essays_expected: Count | None
    source: Source


@described
class BatchProblem(TypedDict):
    """Why a batch has no plan, with the further members that `Problem` has for its type."""

    type: str
    status: int
    detail: str


@described
class UnplannedBatch(TypedDict):
    """A line for a batch without an answer, which keeps no other batch from its own."""

    batch_id: str
    problem: BatchProblem


@described
class PhaseTotals(TypedDict):
    """A phase in all batches of the plan."""

    runs: Count
    """The number of batches for which it runs."""
    pruned: Count
    """The number of batches for which it is complete."""
    left_out: Count
    essays: Count
    """How many essays the batches have for which it runs."""
    outstanding: Count
    """How many of these have not completed it."""


@described
class PlanTotals(TypedDict):
    """All batches of the plan."""

    pipeline: str
    batches: Count
    unknown: Count
    """Batches of which nothing is known."""
    nothing_to_run: Count
    failed: Count
    """Batches without an answer."""
    phases: Mapping[str, PhaseTotals]


@described
class SelectedPage(TypedDict):
    """How the batches were selected."""

    source: Source
    scanned: Count
    """How many batches were looked at."""
    next_cursor: str | None
    """To go on with further batches; null after the last one."""


@described
class PlanEnd(TypedDict):
    """The last line of a plan."""

    totals: PlanTotals
    selection: NotRequired[SelectedPage | None]
    """Where the request selects the batches."""
    options: NotRequired[Mapping[str, str | Sequence[str]]]
    """What the request forces, leaves out or assumes."""
    warnings: NotRequired[Warnings]
    """Fields of the request that BCS does not read, and that look like a field that it reads."""
    definitions: DefinitionsVersion
    as_of: AsOf


@described
class PlanBroken(TypedDict):
    """The last line of a plan whose further lines could not be made."""

    problem: Problem
    selection: NotRequired[SelectedPage | None]
    """Where to go on."""
