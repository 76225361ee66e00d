"""Plans a pipeline for many batches, portion by portion: which phases would run, without any effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from bcs.domain.finding import Criteria
from bcs.domain.law import CompletionLaw
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import BatchSummary
from bcs.domain.resolution import Resolution, validate_request
from bcs.domain.resolve_options import ResolveOptions
from bcs.errors import BcsError
from bcs.kafka.lag_age import IntakeLag
from bcs.usecases.active_definitions import Rules
from bcs.usecases.batch_reader import BatchReader
from bcs.usecases.find_batches import MOST_SCANNED, BatchFinder, Cursor
from bcs.usecases.kept_resolutions import KeptResolutions

# More at a time read no faster.
_AT_A_TIME = 16
# Short, so that the first lines come soon, and long enough to read and resolve many batches together.
_PORTION = 100


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

    def add(self, plans: Iterable[Planned]) -> None:
        """Add plans of batches."""
        # Many batches have equal states, and so the same resolution.
        counts: Counter[int] = Counter()
        resolutions: dict[int, Resolution] = {}
        for planned in plans:
            self.batches += 1
            self.unknown += not planned.known
            if planned.resolution is None:
                self.failed += 1
            else:
                counts[id(planned.resolution)] += 1
                resolutions[id(planned.resolution)] = planned.resolution
        for identity, count in counts.items():
            resolution = resolutions[identity]
            essays = essays_of(resolution)
            self.nothing_to_run += 0 if resolution.to_run else count
            for decision in resolution.decisions:
                of_phase = self.phases[decision.phase]
                if decision.runs:
                    of_phase.runs += count
                    of_phase.essays += count * essays
                    of_phase.outstanding += count * (essays - decision.completed)
                elif decision.selected:
                    of_phase.pruned += count
                else:
                    of_phase.left_out += count


def essays_of(resolution: Resolution) -> int:
    """How many essays the batch has, as far as BCS knows."""
    return max(resolution.known, resolution.expected or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The batches to plan, by what they are like.

    :param criteria: under the definitions of the service, also where the plan is for a draft.
    :param limit: how many batches the plan has at most.
    :param cursor: where to go on; None to begin.
    """

    criteria: Criteria
    limit: int
    cursor: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPipeline:
    """A request to plan a pipeline.

    :param batches: the ids of the batches, or what they are like.
    :param draft: replaces the definitions of the service; None without a draft.
    """

    batches: Sequence[str] | Selection
    pipeline: str
    options: ResolveOptions
    draft: PipelineDefinitions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlanner:
    """Resolves a pipeline for many batches from snapshots.

    :param reader: of a source that writes nothing.
    :param finder: makes a finder that judges batches by a law, and writes nothing.
    :param lag: measures how far the intake is behind.
    :param reading: limits the number of plans that read, and of large reads beside them.
    """

    reader: BatchReader
    finder: Callable[[CompletionLaw], BatchFinder]
    require_registration: bool
    lag: Callable[[], IntakeLag]
    reading: anyio.Semaphore

    def begin(self, rules: Rules, command: PlanPipeline) -> Plan:
        """Begin a plan, which is then made portion by portion.

        :param rules: those of the service when the request began.
        :raises RequestRefused: no batch can have an answer.
        """
        definitions = command.draft or rules.definitions
        validate_request(definitions, command.pipeline, prompt_attached=None, options=command.options)
        batches: _Listed | _Selected
        if isinstance(command.batches, Selection):
            batches = _Selected(command.batches, self.finder(rules.law), reusable=command.draft is None)
        else:
            batches = _Listed(command.batches)
        return Plan(self, definitions, command, batches)


class Plan:
    """A plan that is being made.

    Between two portions it holds nothing of the batches, since its caller may read slowly.

    :ivar definitions: those that decide.
    :ivar lag: how far the intake was behind before the first batch was read.
    :ivar selected: how far the selection has come; None if the batches were listed.
    """

    def __init__(
        self,
        planner: PipelinePlanner,
        definitions: PipelineDefinitions,
        command: PlanPipeline,
        batches: _Listed | _Selected,
    ) -> None:
        self.definitions = definitions
        self.pipeline = command.pipeline
        self.options = command.options
        self.lag = planner.lag()
        self.totals = Totals(phases={phase.name: PhaseTotals() for phase in definitions.plan(command.pipeline)})
        self.selected = batches if isinstance(batches, _Selected) else None
        self._planner = planner
        self._law = definitions.law(require_registration=planner.require_registration)
        self._batches = batches

    @property
    def ended(self) -> bool:
        """True if all batches are planned."""
        return self._batches.ended

    async def portion(self) -> list[Planned]:
        """Plan the next batches. A batch without an answer does not keep the others from theirs.

        :raises StoreUnavailable: no batches can be selected.
        """
        # Kept for one portion only, because a request may be answered slowly.
        resolutions = KeptResolutions(self.definitions, self.options)
        found: dict[str, Planned] = {}
        async with self._planner.reading:
            portion = await self._batches.next(self._planner.reader.store_name)
            waiting = iter(dict.fromkeys(portion.batch_ids))

            async def work() -> None:
                for batch_id in waiting:
                    found[batch_id] = await self._planned(batch_id, portion.summaries.get(batch_id), resolutions)

            async with anyio.create_task_group() as group:
                for _ in range(min(_AT_A_TIME, len(portion.batch_ids))):
                    group.start_soon(work)
        plans = [found[batch_id] for batch_id in portion.batch_ids]
        self.totals.add(plans)
        portion.done()
        return plans

    async def _planned(self, batch_id: str, summary: BatchSummary | None, resolutions: KeptResolutions) -> Planned:
        reader = self._planner.reader
        source = reader.store_name
        try:
            if summary is None:
                summary, source = await reader.summary(batch_id, self._law)
            resolution = resolutions.resolve(self.pipeline, summary)
        except BcsError as error:
            return Planned(batch_id, None, error=error)
        return Planned(batch_id, resolution, source, known=not summary.unknown)


@dataclass(frozen=True, slots=True)
class _Portion:
    """Batches to plan now.

    :param summaries: of those that were read in the search already, under the law of the plan.
    :param done: to be called when they are planned.
    """

    batch_ids: Sequence[str]
    summaries: Mapping[str, BatchSummary]
    done: Callable[[], None]


class _Listed:
    """The batches of a request that names them."""

    def __init__(self, batch_ids: Sequence[str]) -> None:
        self._batch_ids = batch_ids
        self._planned = 0

    @property
    def ended(self) -> bool:
        return self._planned >= len(self._batch_ids)

    async def next(self, _: str) -> _Portion:
        batch_ids = self._batch_ids[self._planned : self._planned + _PORTION]

        def done() -> None:
            self._planned += len(batch_ids)

        return _Portion(batch_ids, {}, done)


class _Selected:
    """The batches that meet criteria.

    A batch that changes meanwhile may be found twice; the plan has the first one.

    :param reusable: True if the law of the finder is that of the plan.
    :ivar source: the store in which the batches are searched for.
    :ivar scanned: how many batches were looked at.
    :ivar following: where the search goes on; None if all batches are found.
    """

    def __init__(self, selection: Selection, finder: BatchFinder, *, reusable: bool) -> None:
        self.source = finder.source
        self.scanned = 0
        self.following = selection.cursor
        self.ended = False
        self._criteria = selection.criteria
        self._left = selection.limit
        self._finder = finder
        self._reusable = reusable
        self._found: set[str] = set()

    async def next(self, store_name: str) -> _Portion:
        page = await self._finder.find(
            self._criteria,
            limit=min(_PORTION, self._left),
            cursor=self.following,
            most_scanned=MOST_SCANNED - self.scanned,
        )
        summaries: dict[str, BatchSummary] = {}
        if self._reusable and self.source == store_name:
            summaries = {found.batch_id: found.summary for found in page.batches}
        found = [*(batch.batch_id for batch in page.batches), *page.unreadable]
        batch_ids = [batch_id for batch_id in found if batch_id not in self._found]

        def done() -> None:
            self._found.update(batch_ids)
            self._left -= len(found)
            self.scanned += page.scanned
            self.following = page.following
            self.ended = page.following is None or self._left <= 0 or self.scanned >= MOST_SCANNED

        return _Portion(batch_ids, summaries, done)
