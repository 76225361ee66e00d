"""The configurable part of the completion rules: what each phase requires, and when a phase counts as complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

LAW_VERSION = 2
"""Rises when the same state can lead to another answer; stored summaries of another version are not used."""


class CompleteWhen(StrEnum):
    """When a phase counts as complete; the values are those of the pipeline file."""

    EVERY_ESSAY_COMPLETED = "every_essay_completed"
    EVERY_ESSAY_SETTLED = "every_essay_settled"


class CompletionLaw:
    """The rules that decide from a batch's state which phases are complete.

    :param requires: phase to the phases that it requires directly; without a cycle.
    :param complete_when: phase to its policy; `EVERY_ESSAY_COMPLETED` for a phase that is not in the mapping.
    :param require_registration: the essays of a batch that is not registered never make a phase complete.
    :param definitions: phase to the hash of its definition, for the phases that run again when it changes.
    :ivar definitions: the same.
    """

    def __init__(
        self,
        requires: Mapping[str, Iterable[str]],
        complete_when: Mapping[str, CompleteWhen] | None = None,
        *,
        require_registration: bool = False,
        definitions: Mapping[str, str] | None = None,
    ) -> None:
        direct = {phase: tuple(required) for phase, required in requires.items()}
        policies = dict(complete_when or {})
        self._requires: Mapping[str, tuple[str, ...]] = MappingProxyType(direct)
        self._upstream: Mapping[str, tuple[str, ...]] = MappingProxyType(
            {phase: _all_required(direct, phase) for phase in direct}
        )
        self._complete_when: Mapping[str, CompleteWhen] = MappingProxyType(policies)
        self.require_registration = require_registration
        self.definitions: Mapping[str, str] = MappingProxyType(dict(definitions or {}))
        parts: list[Any] = [
            LAW_VERSION,
            require_registration,
            sorted((p, sorted(r), self.policy(p)) for p, r in direct.items()),
        ]
        if self.definitions:  # without any, the fingerprint is that of a release without definitions
            parts.append(sorted(self.definitions.items()))
        self.fingerprint = blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
        """Identifies the stored summaries that were made under this law; 16 hexadecimal digits."""

    def requires(self, phase: str) -> tuple[str, ...]:
        """The phases that a phase requires directly."""
        return self._requires.get(phase, ())

    def upstream(self, phase: str) -> tuple[str, ...]:
        """The phases that a phase requires, directly or indirectly."""
        return self._upstream.get(phase, ())

    def policy(self, phase: str) -> CompleteWhen:
        """When a phase counts as complete."""
        return self._complete_when.get(phase, CompleteWhen.EVERY_ESSAY_COMPLETED)


def _all_required(direct: Mapping[str, tuple[str, ...]], phase: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = list(direct[phase])
    while waiting:
        required = waiting.pop()
        if required not in found:
            found[required] = None
            waiting.extend(direct.get(required, ()))
    return tuple(sorted(found))
