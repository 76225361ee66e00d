"""What tells two sets of pipeline definitions apart: the version in their file, and a hash of their content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from bcs.domain.law import CompleteWhen

if TYPE_CHECKING:
    from bcs.domain.pipelines import Phase

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class DefinitionsVersion:
    """Names one set of definitions.

    :param version: the version in the file; None where the file has none.
    :param content_hash: 16 hexadecimal digits. Definitions with the same hash decide every request in the same way.
    """

    version: str | None
    content_hash: str

    def __str__(self) -> str:
        """The version, if there is one, and the hash."""
        return f"{self.version} {self.content_hash}" if self.version else self.content_hash


def content_hash_of(phases: Iterable[Phase], plans: Mapping[str, Iterable[Phase]]) -> str:
    """The hash of definitions. It does not depend on the order of a file where that order changes no answer.

    The order of phases is part of the hash only as far as it decides in which order they run. A pipeline that lists
    other pipelines counts as the phases that these contain.

    :param plans: each name that can be requested, to its phases in the order in which they run.
    """
    # Default values are left out: a release with more options must give the same file the same hash.
    of_phases = sorted((phase.name, sorted(phase.requires), _options(phase)) for phase in phases)
    of_plans = sorted((name, [phase.name for phase in plan]) for name, plan in plans.items())
    text = json.dumps([of_phases, of_plans], separators=(",", ":"))
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _options(phase: Phase) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if phase.complete_when is not CompleteWhen.EVERY_ESSAY_COMPLETED:
        options["complete_when"] = phase.complete_when.value
    if phase.needs_prompt:
        options["needs_prompt"] = True
    if phase.rerun_with_dependencies:
        options["rerun_with_dependencies"] = True
    return options
