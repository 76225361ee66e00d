"""Entries of a batch's history."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.facts import EssayPhaseEnded, Fact, Outcome
from bcs.domain.history import REPORTED, FactsRecorded, PhaseDecided, PipelineResolved, Position

AT_US = 1_764_000_000_123_456
AT = "2025-11-24T16:00:00.123456Z"
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"


def spellchecked(essay: str = "e1", outcome: Outcome = Outcome.COMPLETED) -> Fact:
    """One essay's spellcheck ended."""
    return EssayPhaseEnded("spellcheck", essay, outcome, AT_US)


def consumed(batch: str, *facts: Fact, event_id: str | None = "event-7") -> FactsRecorded:
    """From Kafka."""
    return FactsRecorded(
        uuid.uuid4(),
        batch,
        AT_US,
        facts=facts or (spellchecked(),),
        event_type="SpellcheckPhaseCompletedV1",
        correlation_id=CORRELATION_ID,
        event_id=event_id,
        position=Position("huleedu.batch.spellcheck.phase.completed.v1", 2, 15),
    )


def reported(batch: str, *facts: Fact, by: str = "127.0.0.1") -> FactsRecorded:
    """Over HTTP."""
    return FactsRecorded(
        uuid.uuid4(), batch, AT_US, facts=facts, event_type=REPORTED, correlation_id=CORRELATION_ID, asked_by=by
    )


def answered(batch: str, decisions: Sequence[PhaseDecided] | None = None) -> PipelineResolved:
    """A resolution: spellcheck pruned, ai_feedback to run."""
    usual = (
        PhaseDecided("spellcheck", False, "already_completed", "all 30 essays have completed it"),
        PhaseDecided("ai_feedback", True, "essays_outstanding", "0 of 30 essays have completed it"),
    )
    made = usual if decisions is None else tuple(decisions)
    return PipelineResolved(
        uuid.uuid4(),
        batch,
        AT_US,
        correlation_id=CORRELATION_ID,
        asked_by="127.0.0.1",
        pipeline="ai_feedback",
        decisions=made,
        version=3,
        source="redis",
        registered=False,
        definitions=DefinitionsVersion("7", "0123456789abcdef"),
    )
