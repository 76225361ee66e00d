"""Kept resolutions and their encoded answers are the same as new ones, and their number is bounded."""

from __future__ import annotations

import pytest
from pydantic_core import from_json, to_json

from bcs.config.pipelines import load_pipelines
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.resolution import resolve
from bcs.errors import UnknownPipeline
from bcs.http import requests
from bcs.http.requests import PipelineAnswers, pipeline_answer
from bcs.usecases import kept_resolutions
from bcs.usecases.kept_resolutions import KeptResolutions

DEFINITIONS = load_pipelines(None)


def summary(completed: int, *, version: int = 1, known: int = 3, expected: int | None = 3) -> BatchSummary:
    progress = {
        "spellcheck": PhaseProgress(completed == known, completed, 0),
        "other": PhaseProgress(False, version, 0),
    }
    return BatchSummary(version, known, expected, progress)


@pytest.mark.parametrize(
    "other",
    [summary(2), summary(3, known=4), summary(3, expected=4), summary(3, expected=None), BatchSummary(1, 3, 3)],
)
def test_a_state_that_differs_gets_its_own_resolution(other: BatchSummary) -> None:
    kept = KeptResolutions(DEFINITIONS)
    for each in (summary(3), other, summary(3)):
        for requested in ("ai_feedback", "spellcheck"):
            assert kept.resolve(requested, each) == resolve(DEFINITIONS, requested, each)


def test_equal_states_of_the_pipeline_get_the_same_resolution() -> None:
    kept = KeptResolutions(DEFINITIONS)
    assert kept.resolve("ai_feedback", summary(2)) is kept.resolve("ai_feedback", summary(2, version=2))


def test_an_unknown_pipeline_is_refused_every_time() -> None:
    kept = KeptResolutions(DEFINITIONS)
    for _ in range(2):
        with pytest.raises(UnknownPipeline):
            kept.resolve("unknown", summary(1))


def test_the_number_of_kept_resolutions_and_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_resolutions, "_MOST_KEPT", 2)
    monkeypatch.setattr(requests, "_MOST_KEPT", 2)
    kept, answers = KeptResolutions(DEFINITIONS), PipelineAnswers()
    for number in (*range(5), *range(5)):
        resolution = kept.resolve("ai_feedback", summary(0, known=number))
        assert resolution.known == from_json(answers.encode("b", resolution, "redis", []))["essays_known"] == number
        assert len(kept._kept) <= 2
        assert len(answers._kept) <= 2


@pytest.mark.parametrize("batch_id", ["b", 'quoted "and" \\ back', "ü \u2028 \x7f"])
@pytest.mark.parametrize("warnings", [[], ["one", "two"]])
def test_an_encoded_answer_is_the_document_as_json(batch_id: str, warnings: list[str]) -> None:
    resolution = resolve(DEFINITIONS, "ai_feedback", summary(3))
    answers = PipelineAnswers()
    document = {**pipeline_answer(batch_id, resolution), "source": "redis"}
    for _ in range(2):
        encoded = answers.encode(batch_id, resolution, "redis", warnings)
        assert encoded == to_json({**document, "warnings": warnings} if warnings else document)
