"""The options of a resolution: which phases to run again, which to leave out, and what to assume."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.errors import UnknownPhases


class Force(StrEnum):
    """Which phases to run again without naming each."""

    REQUESTED = "requested"
    """The phases that the requested pipeline itself lists."""
    ALL = "all"
    """These, and all phases that they require."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveOptions:
    """The options of a resolution. The default is a plain request.

    :param force: the phases that run although they are complete.
    :param until: the last phase of interest: only this phase and the phases that it requires are selected.
    :param only: the selected phases; empty for all.
    :param exclude: phases that are not selected.
    :param assume_completed: phases that count as complete, whatever is known of them.
    :param assume_failed: phases that count as failed for every essay, whatever is known of them.
    """

    force: Force | tuple[str, ...] = ()
    until: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    assume_completed: tuple[str, ...] = ()
    assume_failed: tuple[str, ...] = ()

    @property
    def assumes(self) -> bool:
        """True if the resolution assumes what may not be so; then it must have no effects."""
        return bool(self.assume_completed or self.assume_failed)

    def given(self) -> dict[str, str | list[str]]:
        """The options that differ from those of a plain request, by name."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: list(value) if isinstance(value, tuple) else str(value) for name, value in values if value}

    @classmethod
    def of(cls, given: Mapping[str, str | list[str]]) -> ResolveOptions:
        """The options that `given` returned; further names are ignored."""
        if not given:
            return PLAIN
        force = given.get("force", ())
        until = given.get("until")
        return cls(
            force=Force(force) if isinstance(force, str) else tuple(force),
            until=None if until is None else str(until),
            **{name: tuple(given.get(name, ())) for name in ("only", "exclude", "assume_completed", "assume_failed")},
        )


PLAIN = ResolveOptions()


@dataclass(frozen=True, slots=True)
class Selection:
    """The effect of the options on one pipeline.

    :param plan: all phases of the pipeline, in order.
    :param selected: the phases that the request is about; the others are left out.
    :param forced: the selected phases that run although they are complete.
    """

    plan: tuple[Phase, ...]
    selected: frozenset[str]
    forced: frozenset[str]


def select(definitions: PipelineDefinitions, requested: str, options: ResolveOptions) -> Selection:
    """Apply the options to a pipeline.

    :raises UnknownPipeline: nothing is defined under that name.
    :raises UnknownPhases: an option names a phase that the pipeline does not have, or `force` one that is left out.
    """
    plan = definitions.plan(requested)
    names = tuple(phase.name for phase in plan)
    if options is PLAIN:
        return Selection(plan, frozenset(names), frozenset())
    selected = set(names)
    if options.until is not None:
        _check("until", (options.until,), names)
        selected = {phase.name for phase in definitions.plan_of_phase(options.until)}
    if options.only:
        _check("only", options.only, names)
        selected &= set(options.only)
    _check("exclude", options.exclude, names)
    selected -= set(options.exclude)
    _check("assume_completed", options.assume_completed, names)
    _check("assume_failed", options.assume_failed, names)
    if options.force is Force.ALL:
        forced = selected
    elif options.force is Force.REQUESTED:
        forced = selected & set(definitions.listed(requested))
    else:
        _check("force", options.force, [name for name in names if name in selected])
        forced = set(options.force)
    return Selection(plan, frozenset(selected), frozenset(forced))


def _check(option: str, given: Collection[str], known: Collection[str]) -> None:
    if not set(given) <= set(known):
        raise UnknownPhases(option, tuple(known))
