"""What an answer costs besides its round trips, counted: entries of the history, resolutions, and writes."""

from __future__ import annotations

import pytest

from bcs.usecases import kept_resolutions, resolve_pipeline
from tests.support.service import Orchestrator

pytestmark = pytest.mark.anyio


async def test_without_an_archive_no_answer_makes_an_entry_of_the_history(
    orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(resolve_pipeline, "PipelineResolved", lambda *entry, **_: made.append(entry))
    assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    assert made == []


async def test_batches_in_the_same_state_are_resolved_once(
    orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(await orchestrator.define(f"{batch}-{number}")).json for number in range(2)]
    monkeypatch.setattr(kept_resolutions, "resolve", None)
    answers.append((await orchestrator.define(f"{batch}-2")).json)
    assert [answer.pop("batch_id") for answer in answers] == [f"{batch}-{number}" for number in range(3)]
    assert answers[0] == answers[1] == answers[2]
