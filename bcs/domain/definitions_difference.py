"""The difference between two sets of pipeline definitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.pipelines import Phase, PipelineDefinitions

OptionValue = bool | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OptionChange:
    """An option of a phase that both definitions have.

    :param option: the name of the option in the file.
    """

    phase: str
    option: str
    before: OptionValue
    after: OptionValue


@dataclass(frozen=True, slots=True)
class PlanChange:
    """The phases of a name that can be requested, in the order in which they run.

    :param before: None where the name is new.
    :param after: None where the name is gone.
    """

    pipeline: str
    before: tuple[str, ...] | None
    after: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class DefinitionChange:
    """A phase runs again, for the batches that completed it under the definition before.

    :param before: the hash of its definition before.
    :param after: the hash of its definition now.
    """

    phase: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What definitions change, compared with others.

    :param runs_again: the phases with `rerun_when_changed`, before and now, whose definitions differ.
    :param plans: of pipelines, and of phases that both definitions have. A new phase has a plan of its own, too.
    """

    before: DefinitionsVersion
    after: DefinitionsVersion
    phases_added: tuple[str, ...]
    phases_removed: tuple[str, ...]
    options: tuple[OptionChange, ...]
    runs_again: tuple[DefinitionChange, ...]
    plans: tuple[PlanChange, ...]

    @property
    def same_content(self) -> bool:
        """True if both definitions decide every request in the same way; their versions may differ."""
        return self.before.content_hash == self.after.content_hash

    def sentences(self) -> Iterator[str]:
        """Each change for a person."""
        if self.before.version != self.after.version:
            yield f"version: {self.after.version or 'none'}, before {self.before.version or 'none'}"
        for phase in self.phases_added:
            yield f"phase {phase}: added"
        for phase in self.phases_removed:
            yield f"phase {phase}: removed"
        for change in self.options:
            yield f"phase {change.phase}: {change.option} is {_shown(change.after)}, before {_shown(change.before)}"
        for again in self.runs_again:
            yield (
                f"phase {again.phase}: runs again for batches that completed it under the definition before "
                f"({again.before} → {again.after})"
            )
        for plan in self.plans:
            if plan.before is None:
                yield f"pipeline {plan.pipeline}: added, runs {_shown(plan.after or ())}"
            elif plan.after is None:
                yield f"pipeline {plan.pipeline}: removed, ran {_shown(plan.before)}"
            else:
                yield f"pipeline {plan.pipeline}: runs {_shown(plan.after)}, before {_shown(plan.before)}"


def difference(before: PipelineDefinitions, after: PipelineDefinitions) -> Difference:
    """Compare two definitions. The order in a file counts only where it changes the order of a pipeline."""
    return Difference(
        before=before.identity,
        after=after.identity,
        phases_added=tuple(name for name in after.phases if name not in before.phases),
        phases_removed=tuple(name for name in before.phases if name not in after.phases),
        options=tuple(
            change
            for name, phase in before.phases.items()
            if name in after.phases
            for change in _options(phase, after.phases[name])
        ),
        runs_again=tuple(
            DefinitionChange(name, phase.definition, after.phases[name].definition)
            for name, phase in before.phases.items()
            if phase.rerun_when_changed
            and name in after.phases
            and after.phases[name].rerun_when_changed
            and after.phases[name].definition != phase.definition
        ),
        plans=tuple(_plans(before, after)),
    )


def _options(before: Phase, after: Phase) -> Iterator[OptionChange]:
    pairs: tuple[tuple[str, OptionValue, OptionValue], ...] = (
        ("requires", tuple(sorted(before.requires)), tuple(sorted(after.requires))),
        ("needs_prompt", before.needs_prompt, after.needs_prompt),
        ("rerun_with_dependencies", before.rerun_with_dependencies, after.rerun_with_dependencies),
        ("complete_when", before.complete_when.value, after.complete_when.value),
        ("rerun_when_changed", before.rerun_when_changed, after.rerun_when_changed),
        ("revision", before.revision or (), after.revision or ()),
    )
    for option, old, new in pairs:
        if old != new:
            yield OptionChange(before.name, option, old, new)


def _plans(before: PipelineDefinitions, after: PipelineDefinitions) -> Iterator[PlanChange]:
    for name in dict.fromkeys((*before.names, *after.names)):
        old, new = _plan(before, name), _plan(after, name)
        # A phase that is added or removed is listed as a phase.
        alone = name not in before.pipelines and name not in after.pipelines and (old is None or new is None)
        if old != new and not alone:
            yield PlanChange(name, old, new)


def _plan(definitions: PipelineDefinitions, name: str) -> tuple[str, ...] | None:
    return tuple(phase.name for phase in definitions.plan(name)) if name in definitions.names else None


def _shown(value: OptionValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else ", ".join(value) or "nothing"
