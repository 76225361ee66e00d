"""Plans a pipeline for many batches at once: which phases would run, without any effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from bcs.domain.law import CompletionLaw
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.resolution import Resolution, validate_request
from bcs.domain.resolve_options import ResolveOptions
from bcs.errors import BcsError
from bcs.usecases.active_definitions import Rules
from bcs.usecases.batch_reader import BatchReader
from bcs.usecases.kept_resolutions import KeptResolutions

# More at a time read no faster.
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan for one batch.

    :param resolution: None if there is no answer for this batch.
    :param error: why; None if there is an answer.
    :param known: False if no fact of the batch is stored.
    """

    batch_id: str
    resolution: Resolution | None
    source: str = ""
    error: BcsError | None = None
    known: bool = True


@dataclass(slots=True)
class PhaseTotals:
    """A phase in all batches of a plan.

    :param runs: the number of batches for which it runs.
    :param pruned: the number of batches for which it is complete.
    :param left_out: the number of batches for which the request leaves it out.
    :param essays: how many essays the batches have for which it runs.
    :param outstanding: how many of these have not completed it.
    """

    runs: int = 0
    pruned: int = 0
    left_out: int = 0
    essays: int = 0
    outstanding: int = 0


@dataclass(slots=True)
class Totals:
    """All batches of a plan.

    :param batches: how many batches were planned, including those without an answer.
    :param unknown: batches of which no fact is stored.
    :param nothing_to_run: batches for which no phase runs.
    :param failed: batches without an answer.
    :param phases: in the order of the pipeline.
    """

    batches: int = 0
    unknown: int = 0
    nothing_to_run: int = 0
    failed: int = 0
    phases: dict[str, PhaseTotals] = field(default_factory=dict)


def total(plans: Sequence[Planned], phases: Sequence[str]) -> Totals:
    """Add up plans.

    :param phases: the phases of the pipeline, in order.
    """
    totals = Totals(batches=len(plans), phases={name: PhaseTotals() for name in phases})
    # Many batches have equal states, and so the same resolution.
    counts: Counter[int] = Counter()
    resolutions: dict[int, Resolution] = {}
    for planned in plans:
        totals.unknown += not planned.known
        if planned.resolution is None:
            totals.failed += 1
        else:
            counts[id(planned.resolution)] += 1
            resolutions[id(planned.resolution)] = planned.resolution
    for identity, count in counts.items():
        resolution = resolutions[identity]
        essays = max(resolution.known, resolution.expected or 0)
        totals.nothing_to_run += 0 if resolution.to_run else count
        for decision in resolution.decisions:
            of_phase = totals.phases[decision.phase]
            if decision.runs:
                of_phase.runs += count
                of_phase.essays += count * essays
                of_phase.outstanding += count * (essays - decision.completed)
            elif decision.selected:
                of_phase.pruned += count
            else:
                of_phase.left_out += count
    return totals


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlanner:
    """Resolves a pipeline for many batches from snapshots.

    :param reader: of a source that writes nothing.
    :param reading: limits the number of plans, and of large reads beside them.
    """

    reader: BatchReader
    require_registration: bool
    reading: anyio.Semaphore

    async def plan(
        self,
        rules: Rules,
        batch_ids: Sequence[str],
        pipeline: str,
        options: ResolveOptions,
        draft: PipelineDefinitions | None,
    ) -> list[Planned]:
        """Plan a pipeline for each of the batches.

        :param rules: those of the service when the request began.
        :param draft: replaces the definitions of the service; None without a draft.
        :returns: in the order of the batches. A batch without an answer does not keep the others from theirs.
        :raises RequestRefused: no batch can have an answer.
        """
        definitions = draft or rules.definitions
        validate_request(definitions, pipeline, prompt_attached=None, options=options)
        resolutions = KeptResolutions(definitions, options)
        law = definitions.law(require_registration=self.require_registration)
        found: dict[str, Planned] = {}
        waiting = iter(dict.fromkeys(batch_ids))

        async def work() -> None:
            for batch_id in waiting:
                found[batch_id] = await self._planned(batch_id, pipeline, resolutions, law)

        async with self.reading, anyio.create_task_group() as group:
            for _ in range(min(_AT_A_TIME, len(batch_ids))):
                group.start_soon(work)
        return [found[batch_id] for batch_id in batch_ids]

    async def _planned(self, batch_id: str, pipeline: str, resolutions: KeptResolutions, law: CompletionLaw) -> Planned:
        try:
            summary, source = await self.reader.summary(batch_id, law)
            resolution = resolutions.resolve(pipeline, summary)
        except BcsError as error:
            return Planned(batch_id, None, error=error)
        return Planned(batch_id, resolution, source, known=not summary.unknown)
