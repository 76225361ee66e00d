"""Pasts of batches as the platform tells them: a registration, a spellcheck of each essay, and three phases more."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseReported
from bcs.domain.history import FactsRecorded, Position, consumed_entry_id
from bcs.wire import topics

ANY_BATCH = "3f2b8c1d-7a4e-4c6f-9d21-{number:12}"
"""The id of any of the batches, for a request."""

_ESSAYS = 30
_PHASES = ("nlp", "cj_assessment", "ai_feedback")
FACTS_OF_A_BATCH = 1 + _ESSAYS + len(_PHASES) * (_ESSAYS + 1)
_BEGAN_US = 1_764_000_000_000_000
_BETWEEN_US = 1_000_000
_PARTITIONS = 12
# Prime, so that no number comes twice; and those in a row are no neighbours in the record.
_STRIDE = 999_983


def batch_of(number: int) -> str:
    """The id of one of the batches."""
    return ANY_BATCH.replace("{number:12}", f"{number:012}")


def told(first: int, last: int, batches: int, together: int) -> Iterator[FactsRecorded]:
    """The entries of some batches, in the order in which they become known.

    :param first: the place of the first one in that order.
    :param last: the place behind the last one.
    :param batches: how many there are in all; their numbers go up to that.
    :param together: so many take turns, entry by entry.
    """
    for start in range(first, last, together):
        pasts = [
            _past(batch_of(place * _STRIDE % batches), place) for place in range(start, min(start + together, last))
        ]
        for entries in zip(*pasts, strict=True):
            yield from entries


def _past(batch_id: str, place: int) -> Iterator[FactsRecorded]:
    essays = tuple(str(uuid4()) for _ in range(_ESSAYS))
    began_us = _BEGAN_US + place * _BETWEEN_US
    registration: tuple[Fact, ...] = (EssaysRegistered(essays, _ESSAYS, began_us),)
    events: list[tuple[str, str, tuple[Fact, ...]]] = [
        (topics.ESSAYS_REGISTERED, "BatchEssaysRegistered", registration)
    ]
    for number, essay in enumerate(essays, start=1):
        ended = EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, began_us + number)
        events.append((topics.SPELLCHECK_COMPLETED, "SpellcheckPhaseCompletedV1", (ended,)))
    for number, phase in enumerate(_PHASES, start=_ESSAYS + 1):
        at_us = began_us + number
        outcome: list[Fact] = [EssayPhaseEnded(phase, essay, Outcome.COMPLETED, at_us) for essay in essays]
        outcome.append(PhaseReported(phase, Outcome.COMPLETED, at_us))
        events.append((topics.PHASE_OUTCOME, "ELSBatchPhaseOutcomeV1", tuple(outcome)))
    correlation_id = str(uuid4())
    for number, (topic, event_type, facts) in enumerate(events):
        position = Position(topic, place % _PARTITIONS, place * len(events) + number)
        entry_id = consumed_entry_id(topic, position.partition, position.offset, began_us // 1000)
        at_us = began_us + number
        yield FactsRecorded(
            entry_id,
            batch_id,
            at_us,
            facts=facts,
            event_type=event_type,
            correlation_id=correlation_id,
            event_id=str(uuid4()),
            position=position,
        )
