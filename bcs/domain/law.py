"""The law of completion, as far as it is chosen: what each phase requires, when it counts as complete, and for whom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType

LAW_VERSION = 2
"""Rises when the same state may come to another answer; stored summaries of another version are not used."""


class CompleteWhen(StrEnum):
    """When a phase counts as complete; the values are those of the pipeline file."""

    EVERY_ESSAY_COMPLETED = "every_essay_completed"
    EVERY_ESSAY_SETTLED = "every_essay_settled"


class CompletionLaw:
    """What a batch's state is judged by.

    :param requires: phase to the phases that it requires directly; without a cycle.
    :param complete_when: phase to its policy; `EVERY_ESSAY_COMPLETED` where it is not named.
    :param require_registration: a batch that is not registered is never complete by counting its essays.
    """

    def __init__(
        self,
        requires: Mapping[str, Iterable[str]],
        complete_when: Mapping[str, CompleteWhen] | None = None,
        *,
        require_registration: bool = False,
    ) -> None:
        direct = {phase: tuple(required) for phase, required in requires.items()}
        policies = dict(complete_when or {})
        self._requires: Mapping[str, tuple[str, ...]] = MappingProxyType(direct)
        self._upstream: Mapping[str, tuple[str, ...]] = MappingProxyType(
            {phase: _all_required(direct, phase) for phase in direct}
        )
        self._complete_when: Mapping[str, CompleteWhen] = MappingProxyType(policies)
        self.require_registration = require_registration
        parts = [LAW_VERSION, require_registration, sorted((p, sorted(r), self.policy(p)) for p, r in direct.items())]
        self.fingerprint = blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
        """Names the summaries that hold under this law, 16 hexadecimal digits."""

    def requires(self, phase: str) -> tuple[str, ...]:
        """The phases that a phase requires directly."""
        return self._requires.get(phase, ())

    def upstream(self, phase: str) -> tuple[str, ...]:
        """The phases that a phase requires, directly or not."""
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
