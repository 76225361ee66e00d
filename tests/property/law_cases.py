"""Batches and definitions for tests of the law: few essays, few times, and every kind of fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, pairwise

from hypothesis import strategies as st

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    repeat_key_of,
)
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.state import BatchState, delta_of
from tests.property.law_oracle import LawOracle, Ruling

PHASES = ("first", "second", "third", "fourth")
ESSAYS = ("a", "b", "c", "d")
LATEST = 4
TIMES = st.integers(0, LATEST)
SUCCESS = "completed_successfully"


@dataclass(frozen=True)
class Case:
    """Definitions, a setting, and the facts of a batch."""

    phases: tuple[Phase, ...]
    require_registration: bool
    facts: tuple[Fact, ...]

    @property
    def definitions(self) -> PipelineDefinitions:
        return PipelineDefinitions(self.phases)

    @property
    def law(self) -> CompletionLaw:
        return self.definitions.law(require_registration=self.require_registration)

    def rulings(self) -> dict[str, Ruling]:
        oracle = LawOracle(
            self.facts,
            {phase.name: phase.requires for phase in self.phases},
            {phase.name: phase.complete_when for phase in self.phases},
            require_registration=self.require_registration,
        )
        return {phase.name: oracle.rule(phase.name) for phase in self.phases}


def some_of(names: Sequence[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), unique=True).map(tuple) if names else st.just(())


def definitions_of(names: tuple[str, ...]) -> st.SearchStrategy[tuple[Phase, ...]]:
    """Each phase may require any that come before it, so that some are required indirectly."""
    policies = st.sampled_from(CompleteWhen)
    phases = [
        # A chain as often as anything else.
        st.builds(Phase, st.just(name), st.just(names[:at][-1:]) | some_of(names[:at]), complete_when=policies)
        for at, name in enumerate(names)
    ]
    return st.tuples(*phases).flatmap(st.permutations).map(tuple)


def outcome(
    phase: str, completed: tuple[str, ...], failed: tuple[str, ...], both: bool, status: str, at_us: int, source: str
) -> PhaseOutcome:
    """A CJ outcome has its own time; an ELS outcome mostly has none, and only it can cover all essays."""
    if not both:
        failed = tuple(essay for essay in failed if essay not in completed)
    # Lists with nothing but nulls name nobody either, and do not speak for all.
    nameless = not completed and not failed and source != "CJ" and "nulls" not in source
    key = "" if source in ("CJ", "ELS with a time") else repeat_key_of(phase, source, status, completed, failed)
    return PhaseOutcome(
        phase,
        status,
        completed=completed,
        failed=failed,
        speaks_for_all=nameless and status == SUCCESS,
        at_us=at_us,
        repeat_key=key,
    )


def nearly_all(phase: str, essays: tuple[str, ...], at_us: int, but: str | None, end: Outcome | None) -> list[Fact]:
    """Marks for all essays; one of them failed, or there is nothing about it."""
    ends = {essay: end if essay == but else Outcome.COMPLETED for essay in essays}
    return [EssayPhaseEnded(phase, essay, how, at_us) for essay, how in ends.items() if how]


def nameless_success(phase: str, at_us: int) -> list[Fact]:
    return [outcome(phase, (), (), False, SUCCESS, at_us, "ELS")]


def with_copies(facts: list[Fact], copies: list[tuple[int, int]]) -> list[Fact]:
    """An outcome without a time of its own is relayed again, and stamped anew."""
    untimed = [fact for fact in facts if isinstance(fact, PhaseOutcome) and fact.repeat_key]
    again = [replace(untimed[choice % len(untimed)], at_us=at_us) for choice, at_us in copies if untimed]
    return [*facts, *again]


@cache
def registrations(essays: tuple[str, ...]) -> st.SearchStrategy[list[EssaysRegistered]]:
    """None; or one, before or after everything else; or several with counts that differ."""
    listed = st.just(essays) | some_of(essays)
    count = st.just(len(essays)) | st.integers(0, 5)
    once = st.builds(EssaysRegistered, listed, count, st.sampled_from((0, LATEST)))
    several = st.lists(st.builds(EssaysRegistered, listed, count, TIMES), min_size=2, max_size=3)
    return st.just([]) | once.map(lambda one: [one]) | several


@cache
def fact_lists(names: tuple[str, ...], essays: tuple[str, ...]) -> st.SearchStrategy[list[Fact]]:
    """All kinds of facts on a few essays, at so few times that ties are common."""
    phases, ends = st.sampled_from(names), st.sampled_from(Outcome)
    statuses = st.sampled_from((SUCCESS, "completed_with_failures", "failed_critically"))
    sources = st.sampled_from(("CJ", "ELS", "CJ", "ELS for another request", "ELS with nulls", "ELS with a time"))
    kinds: list[st.SearchStrategy[Fact]] = [
        st.builds(outcome, phases, st.just(()), st.just(()), st.just(False), statuses, TIMES, sources),
        st.builds(PhaseReported, phases, st.sampled_from((*Outcome, Outcome.COMPLETED)), TIMES),
        st.builds(PhaseInvalidated, phases, st.none() | st.sampled_from(essays) if essays else st.none(), TIMES),
    ]
    if essays:
        named = st.just(essays[1:]) | some_of(essays)
        kinds.append(st.builds(EssayPhaseEnded, phases, st.sampled_from(essays), ends, TIMES))
        kinds.append(st.builds(outcome, phases, named, some_of(essays), st.booleans(), statuses, TIMES, sources))
    # A phase that nearly all essays completed comes close to every rule; a random heap of facts seldom does.
    but = st.sampled_from((None, *essays))
    sweeps: list[st.SearchStrategy[list[Fact]]] = [
        st.just([])
        | st.builds(nearly_all, st.just(name), st.just(essays), TIMES, but, st.none() | ends)
        | st.builds(nameless_success, st.just(name), TIMES)
        for name in names
    ]
    heap = st.tuples(registrations(essays), *sweeps, st.lists(st.one_of(kinds), max_size=7))
    copies = st.lists(st.tuples(st.integers(0, 3), st.integers(0, LATEST + 2)), max_size=3)
    return st.builds(with_copies, heap.map(lambda lists: list(chain.from_iterable(lists))), copies)


DEFINITIONS = [definitions_of(PHASES[:count]) for count in range(1, len(PHASES) + 1)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    phases = draw(st.one_of(DEFINITIONS))
    essays = ESSAYS[: draw(st.sampled_from((0, 1, 2, 2, 3, 3, 4)))]
    facts = draw(fact_lists(PHASES[: len(phases)], essays))
    return Case(phases, draw(st.booleans()), tuple(facts))


@st.composite
def cases_told_anew(draw: st.DrawFn) -> tuple[Case, list[BatchState]]:
    """A case, and its facts in another order, some of them twice, as deltas of any size."""
    case = draw(cases())
    again = draw(st.lists(st.sampled_from(case.facts), max_size=4)) if case.facts else []
    shuffled = draw(st.permutations([*case.facts, *again]))
    borders = sorted(draw(st.lists(st.integers(0, len(shuffled)), max_size=4)))
    return case, [delta_of(shuffled[start:end]) for start, end in pairwise([0, *borders, len(shuffled)])]
