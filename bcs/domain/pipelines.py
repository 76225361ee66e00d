"""Pipeline definitions: the phases, their dependencies, and the order in which they run."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType

from bcs.domain.definitions_version import DefinitionsVersion, content_hash_of, definition_hash_of
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.errors import (
    DependencyCycle,
    DuplicateName,
    PipelineCycle,
    UnknownDependency,
    UnknownMember,
    UnknownPipeline,
)

PLATFORM_PHASES = frozenset({"spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"})
"""The phases that the platform's services report on, whether or not a pipeline here uses them."""


PHASE_NAME = r"[a-z][a-z0-9_]{0,62}"
"""A regular expression for the names of phases and pipelines."""

_is_phase_name = re.compile(PHASE_NAME).fullmatch


class PhaseNames:
    """Decides which phases facts may be about.

    Other replicas may have definitions with more phases, and a later version of these definitions may have them.

    :param defined: the phases of the definitions.
    :param keep_unknown: facts may be about any phase.
    :ivar known: the phases of the definitions and of the platform, in order.
    """

    def __init__(self, defined: Iterable[str], *, keep_unknown: bool = False) -> None:
        self.known = tuple(sorted(PLATFORM_PHASES.union(defined)))
        self._known = frozenset(self.known)
        self._keep_unknown = keep_unknown

    def knows(self, name: str) -> bool:
        """True for a phase of the definitions or of the platform."""
        return name in self._known

    def __contains__(self, name: str) -> bool:
        """True if facts may be about this phase."""
        return name in self._known or (self._keep_unknown and _is_phase_name(name) is not None)


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of work on a batch.

    :param name: the platform's name for the phase.
    :param requires: the phases that must be complete before this phase can run.
    :param needs_prompt: requests for this phase are refused for a batch without an essay prompt.
    :param rerun_with_dependencies: the phase runs again, although complete, when a phase that it requires runs again.
    :param complete_when: the policy that decides when the phase counts as complete.
    :param rerun_when_changed: the phase runs again, although complete, when its definition has changed since.
    :param revision: the operator's name for the processing; it changes when the results may be others than before.
    """

    name: str
    requires: tuple[str, ...] = ()
    needs_prompt: bool = False
    rerun_with_dependencies: bool = False
    complete_when: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED
    _: KW_ONLY
    rerun_when_changed: bool = False
    revision: str | None = None

    @property
    def definition(self) -> str:
        """The hash of what decides about the results of the phase; see `definition_hash_of`."""
        return definition_hash_of(self.name, self.requires, self.revision)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A named list of phases; resolution adds the phases that these require.

    :param phases: its own phases, after those of the other pipelines.
    :param pipelines: other pipelines, or phases, whose phases this pipeline has, too.
    """

    name: str
    phases: tuple[str, ...]
    pipelines: tuple[str, ...] = ()


class PipelineDefinitions:
    """All phases and pipelines, validated, with the order of each pipeline computed.

    :param phases: their order breaks ties between phases that could run next.
    :param pipelines: besides these, every phase is a pipeline of its own name. A pipeline with a phase's name
        replaces that one, and must contain the phase.
    :param version: the version in the file; None where the file has none.
    :raises DuplicateName: a name is defined twice.
    :raises UnknownDependency: a phase or pipeline names a phase that is not defined.
    :raises UnknownMember: a pipeline names a pipeline that is not defined.
    :raises DependencyCycle: phases depend on each other in a cycle.
    :raises PipelineCycle: pipelines contain each other in a cycle.
    :ivar identity: the version, and the hash of the content.
    """

    def __init__(
        self, phases: Iterable[Phase], pipelines: Iterable[Pipeline] = (), *, version: str | None = None
    ) -> None:
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
            named[pipeline.name] = pipeline
        self.pipelines: Mapping[str, Pipeline] = MappingProxyType(named)
        for name, members in self._members().items():
            if name in by_name and name not in members:
                raise DuplicateName(name, "phases and pipelines")
            plans[name] = self._order(members)
        self._plans: Mapping[str, tuple[Phase, ...]] = MappingProxyType(plans)
        self.identity = DefinitionsVersion(version, _hash(by_name, plans))

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
            definitions={phase.name: phase.definition for phase in phases if phase.rerun_when_changed},
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

    def _members(self) -> dict[str, tuple[str, ...]]:
        """Each pipeline to its phases and those of the pipelines that it names, without what these require."""
        for pipeline in self.pipelines.values():
            for position, name in enumerate(pipeline.phases):
                if name not in self.phases:
                    raise UnknownDependency(pipeline.name, name)
                if name in pipeline.phases[:position]:
                    raise DuplicateName(name, f"pipeline {pipeline.name!r}")
            for position, name in enumerate(pipeline.pipelines):
                if name not in self.pipelines and name not in self.phases:
                    raise UnknownMember(pipeline.name, name)
                if name in pipeline.pipelines[:position]:
                    raise DuplicateName(name, f"the pipelines of {pipeline.name!r}")
        nested = {
            pipeline.name: [name for name in pipeline.pipelines if name in self.pipelines]
            for pipeline in self.pipelines.values()
        }
        try:
            inner_first = tuple(TopologicalSorter(nested).static_order())
        except CycleError as error:
            # graphlib names the cycle from the inner pipeline to the outer one.
            raise PipelineCycle(tuple(reversed(error.args[1]))) from None
        found: dict[str, tuple[str, ...]] = {}
        for outer in inner_first:
            pipeline = self.pipelines[outer]
            named = [name for inner in pipeline.pipelines for name in found.get(inner, (inner,))]
            found[outer] = tuple(dict.fromkeys([*named, *pipeline.phases]))
        return {name: found[name] for name in self.pipelines}

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


def _hash(phases: Mapping[str, Phase], plans: Mapping[str, tuple[Phase, ...]]) -> str:
    defaults = Phase("")
    return content_hash_of(
        {
            name: {
                "requires": sorted(phase.requires),
                **{
                    option: getattr(phase, option)
                    for option in _OPTIONS
                    if getattr(phase, option) != getattr(defaults, option)
                },
            }
            for name, phase in phases.items()
        },
        {name: [phase.name for phase in plan] for name, plan in plans.items()},
    )


_OPTIONS = ("needs_prompt", "rerun_with_dependencies", "complete_when", "rerun_when_changed", "revision")
