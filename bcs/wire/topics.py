"""The topics, fixed by the platform."""

from __future__ import annotations

SPELLCHECK_COMPLETED = "huleedu.batch.spellcheck.phase.completed.v1"
CJ_COMPLETED = "huleedu.cj_assessment.completed.v1"
PHASE_OUTCOME = "huleedu.els.batch.phase.outcome.v1"
ESSAYS_REGISTERED = "huleedu.batch.essays.registered.v1"
CONSUMED = (SPELLCHECK_COMPLETED, CJ_COMPLETED, PHASE_OUTCOME, ESSAYS_REGISTERED)

PHASE_SKIPPED = "huleedu.batch.phase.skipped.v1"
RESOLUTION = "huleedu.pipelines.resolution"


def dead_letter_topic(source: str) -> str:
    """The topic for the dead letters of a source topic."""
    return f"{source}.DLQ"


DEAD_LETTERS = tuple(dead_letter_topic(source) for source in (*CONSUMED, RESOLUTION))
PUBLISHED = (PHASE_SKIPPED, *DEAD_LETTERS)
