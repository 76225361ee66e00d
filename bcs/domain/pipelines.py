"""Pipeline definitions: the phases, their dependencies, and the order in which they run."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType

from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.errors import DependencyCycle, DuplicateName, UnknownDependency, UnknownPipeline

PLATFORM_PHASES = frozenset({"spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"})
"""The phases that the platform's services report on, whether or not a pipeline here uses them."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of work on a batch.

    :param name: the platform's name for the phase.
    :param requires: the phases that must be complete before this phase can run.
    :param needs_prompt: requests for this phase are refused for a batch without an essay prompt.
    :param rerun_with_dependencies: the phase runs again, although complete, when a phase that it requires runs again.
    :param complete_when: the policy that decides when the phase counts as complete.
    """

    name: str
    requires: tuple[str, ...] = ()
    needs_prompt: bool = False
    rerun_with_dependencies: bool = False
    complete_when: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A named list of phases; resolution adds the phases that these require."""

    name: str
    phases: tuple[str, ...]


class PipelineDefinitions:
    """All phases and pipelines, validated, with the order of each pipeline computed.

    :param phases: their order breaks ties between phases that could run next.
    :param pipelines: besides these, every phase is a pipeline of its own name. A pipeline with a phase's name
        replaces that one, and must contain the phase.
    :raises DuplicateName: a name is defined twice.
    :raises UnknownDependency: a phase or pipeline names a phase that is not defined.
    :raises DependencyCycle: phases depend on each other in a cycle.
    """

    def __init__(self, phases: Iterable[Phase], pipelines: Iterable[Pipeline] = ()) -> None:
        by_name: dict[str, Phase] = {}
        for phase in phases:
            if phase.name in by_name:
                raise DuplicateName(phase.name, "phases")
            by_name[phase.name] = phase
        self.phases: Mapping[str, Phase] = MappingProxyType(by_name)
        self._check_dependencies()
        dependents: dict[str, list[str]] = {name: [] for name in by_name}
        for name, phase in by_name.items():
            for required in phase.requires:
                dependents[required].append(name)
        self._dependents = dependents
        plans = {name: self._order((name,)) for name in by_name}
        named: dict[str, Pipeline] = {}
        for pipeline in pipelines:
            if pipeline.name in named:
                raise DuplicateName(pipeline.name, "pipelines")
            if pipeline.name in by_name and pipeline.name not in pipeline.phases:
                raise DuplicateName(pipeline.name, "phases and pipelines")
            named[pipeline.name] = pipeline
            for position, name in enumerate(pipeline.phases):
                if name not in by_name:
                    raise UnknownDependency(pipeline.name, name)
                if name in pipeline.phases[:position]:
                    raise DuplicateName(name, f"pipeline {pipeline.name!r}")
            plans[pipeline.name] = self._order(pipeline.phases)
        self.pipelines: Mapping[str, Pipeline] = MappingProxyType(named)
        self._plans: Mapping[str, tuple[Phase, ...]] = MappingProxyType(plans)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be requested, in the order of the configuration."""
        return tuple(self._plans)

    def law(self, *, require_registration: bool) -> CompletionLaw:
        """The completion law of these definitions.

        :param require_registration: see `CompletionLaw`.
        """
        phases = self.phases.values()
        return CompletionLaw(
            {phase.name: phase.requires for phase in phases},
            {phase.name: phase.complete_when for phase in phases},
            require_registration=require_registration,
        )

    def plan(self, requested: str) -> tuple[Phase, ...]:
        """The phases of a pipeline with all phases that they require, in an order in which they can run.

        :param requested: a pipeline's or a phase's name.
        :raises UnknownPipeline: nothing is defined under that name.
        """
        try:
            return self._plans[requested]
        except KeyError:
            raise UnknownPipeline(requested, self.names) from None

    def listed(self, requested: str) -> tuple[str, ...]:
        """The phases that a pipeline lists itself, without those that it only requires; of a phase, the phase.

        :param requested: a pipeline's or a phase's name that is defined.
        """
        pipeline = self.pipelines.get(requested)
        return (requested,) if pipeline is None else pipeline.phases

    def plan_of_phase(self, phase: str) -> tuple[Phase, ...]:
        """A phase with all phases that it requires, also where a pipeline has the same name.

        :param phase: a phase that is defined.
        """
        return self._order((phase,))

    def _check_dependencies(self) -> None:
        for phase in self.phases.values():
            for position, required in enumerate(phase.requires):
                if required not in self.phases:
                    raise UnknownDependency(phase.name, required)
                if required in phase.requires[:position]:
                    raise DuplicateName(required, f"what {phase.name!r} requires")
        try:
            TopologicalSorter({phase.name: phase.requires for phase in self.phases.values()}).prepare()
        except CycleError as error:
            raise DependencyCycle(tuple(error.args[1])) from None

    def _order(self, wanted: tuple[str, ...]) -> tuple[Phase, ...]:
        """Kahn's algorithm; of the phases that could run next, the first in the configuration runs next.

        "First" means in the pipeline's own list, then in the list of all phases. So the same request always gets the
        same order, and it is the order in the configuration wherever dependencies allow that.
        """
        needed: set[str] = set()
        unvisited = list(wanted)
        while unvisited:
            name = unvisited.pop()
            if name not in needed:
                needed.add(name)
                unvisited.extend(self.phases[name].requires)
        implied = [name for name in self.phases if name in needed and name not in wanted]
        rank = {name: position for position, name in enumerate((*wanted, *implied))}
        waiting_for = {name: len(self.phases[name].requires) for name in needed}
        ready = [(rank[name], name) for name, count in waiting_for.items() if count == 0]
        heapq.heapify(ready)
        order: list[Phase] = []
        while ready:
            _, name = heapq.heappop(ready)
            order.append(self.phases[name])
            for dependent in self._dependents[name]:
                if dependent in needed:
                    waiting_for[dependent] -= 1
                    if waiting_for[dependent] == 0:
                        heapq.heappush(ready, (rank[dependent], dependent))
        return tuple(order)
