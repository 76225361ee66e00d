"""The bodies of answers about pipeline definitions. See `answers.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from bcs.domain.law import CompleteWhen
from bcs.wire.documents import Timestamp, described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other


@described
class DefinitionsVersion(TypedDict):
    """Names pipeline definitions."""

    version: str | None
    """The version in the file; null where the file has none."""
    hash: str
    """Definitions with the same hash decide every request in the same way."""


@described
class DefinedPhase(TypedDict):
    """A phase of a pipeline, with its options."""

    name: str
    requires: Sequence[str]
    needs_prompt: bool
    rerun_with_dependencies: bool
    complete_when: CompleteWhen
    rerun_when_changed: bool
    revision: str | None
    definition: str
    """The hash of the definition: of the name, what the phase requires, and its revision."""


@described
class DefinedPipeline(TypedDict):
    """A name that can be requested."""

    name: str
    kind: Literal["phase", "pipeline"]
    pipelines: Sequence[str]
    """The pipelines that the pipeline file names in this one."""
    phases: Sequence[DefinedPhase]
    """In the order in which they run, with all phases that these require."""


@described
class Pipelines(TypedDict):
    """All names that can be requested."""

    definitions: DefinitionsVersion
    pipelines: Sequence[DefinedPipeline]


@described
class OptionChange(TypedDict):
    """An option of a phase that both definitions have."""

    phase: str
    option: str
    before: bool | str | Sequence[str]
    after: bool | str | Sequence[str]


@described
class PlanChange(TypedDict):
    """The phases of a name that can be requested, in the order in which they run."""

    pipeline: str
    before: Sequence[str] | None
    """Null where the name is new."""
    after: Sequence[str] | None
    """Null where the name is gone."""


@described
class DefinitionChange(TypedDict):
    """A phase runs again, for the batches that completed it under the definition before."""

    phase: str
    before: str
    after: str


@described
class Difference(TypedDict):
    """What definitions change."""

    phases_added: Sequence[str]
    phases_removed: Sequence[str]
    options_changed: Sequence[OptionChange]
    runs_again: Sequence[DefinitionChange]
    pipelines_changed: Sequence[PlanChange]
    changes: Sequence[str]
    """Each change as a sentence."""


@described
class DefinitionsReloaded(Difference):
    """The definitions of the pipeline file are in use."""

    status: Literal["reloaded", "unchanged"]
    definitions: DefinitionsVersion
    before: DefinitionsVersion


@described
class DefinitionsInUse(DefinitionsVersion):
    """The pipeline definitions in use."""

    loaded_at: Timestamp
    problem: str | None
    """Why the last reload was refused, so that older definitions stay in use."""
