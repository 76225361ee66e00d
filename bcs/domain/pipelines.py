"""Pipeline definitions: which phases there are, what each needs, and in which order they run."""

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

    :param name: the platform's name for it.
    :param requires: the phases that have to be complete before this one can run.
    :param needs_prompt: refuse it for a batch without an essay prompt.
    :param rerun_with_dependencies: run it again, although complete, when a phase that it requires runs again.
    :param complete_when: the policy by which it counts as complete.
    """

    name: str
    requires: tuple[str, ...] = ()
    needs_prompt: bool = False
    rerun_with_dependencies: bool = False
    complete_when: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A named set of phases; what they require is added when it is resolved."""

    name: str
    phases: tuple[str, ...]


class PipelineDefinitions:
    """All phases and pipelines, checked once, with the order of each pipeline worked out.

    :param phases: in the order that breaks ties.
    :param pipelines: besides these, every phase is a pipeline of its own name. One that has a phase's name stands for
        that name then, and has to contain the phase.
    :raises DuplicateName: a name stands for two things.
    :raises UnknownDependency: a phase that is not defined is named.
    :raises DependencyCycle: phases wait for each other.
    """

    def __init__(self, phases: Iterable[Phase], pipelines: Iterable[Pipeline] = ()) -> None:
        by_name: dict[str, Phase] = {}
        for phase in phases:
            if phase.name in by_name:
                raise DuplicateName(phase.name, "phases")
            by_name[phase.name] = phase
        self.phases: Mapping[str, Phase] = MappingProxyType(by_name)
        self._check_dependencies()
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
        """The law of completion under these definitions.

        :param require_registration: see `CompletionLaw`.
        """
        phases = self.phases.values()
        return CompletionLaw(
            {phase.name: phase.requires for phase in phases},
            {phase.name: phase.complete_when for phase in phases},
            require_registration=require_registration,
        )

    def plan(self, requested: str) -> tuple[Phase, ...]:
        """The phases of a pipeline with everything that they require, in an order in which they can run.

        :param requested: a pipeline's or a phase's name.
        :raises UnknownPipeline: it is neither.
        """
        try:
            return self._plans[requested]
        except KeyError:
            raise UnknownPipeline(requested, self.names) from None

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
        """Kahn's algorithm; of the phases that could come next, the one that is named first does.

        "Named first" means in the pipeline's own list, then in the list of all phases: the same request always gives
        the same order, and it is the order that the author of the configuration wrote wherever dependencies allow it.
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
            for dependent in needed:
                if name in self.phases[dependent].requires:
                    waiting_for[dependent] -= 1
                    if waiting_for[dependent] == 0:
                        heapq.heappush(ready, (rank[dependent], dependent))
        return tuple(order)
