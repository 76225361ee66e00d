"""What tells pipeline definitions apart: the version in their file, a hash of their content, a hash of each phase."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

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


def content_hash_of(phases: Mapping[str, Mapping[str, Any]], plans: Mapping[str, Iterable[str]]) -> str:
    """The hash of definitions. It does not depend on the order of a file where that order changes no answer.

    The order of phases is part of the hash only as far as it decides in which order they run. A pipeline that lists
    other pipelines counts as the phases that these contain.

    :param phases: each phase to its options. Options with their default value are left out, so that a release with more
        options gives the same file the same hash.
    :param plans: each name that can be requested, to its phases in the order in which they run.
    """
    text = json.dumps([phases, {name: list(plan) for name, plan in plans.items()}], sort_keys=True)
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def definition_hash_of(phase: str, requires: Iterable[str], revision: str | None) -> str:
    """The hash of one phase's definition: of what decides about its results, and of nothing else.

    The options of the phase decide when it runs and when it counts as complete, so they are not in it. Nor are the
    definitions of the phases that it requires; `rerun_with_dependencies` is for these.

    :param requires: in any order.
    """
    text = json.dumps([phase, sorted(requires), revision])
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
