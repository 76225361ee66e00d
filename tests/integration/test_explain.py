"""Explanations, dry runs and options, from a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote
from uuid import UUID

import anyio
import pytest

from bcs.kafka.offsets import Offsets
from bcs.wire import topics
from tests.integration.test_http_batch_pages import LARGE, LONGEST_GAP_SECONDS, PHASES, known, watch_loop
from tests.support.events import phase_outcome, registered, spellchecked
from tests.support.explanation_checker import check_causes, check_essays, pipeline_of
from tests.support.kafka import Platform
from tests.support.service import DEFINE, Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DRAFT = {
    "phases": [
        {"name": "spellcheck"},
        {"name": "translation", "requires": ["spellcheck"], "rerun_with_dependencies": True},
    ],
    "pipelines": [{"name": "translated", "phases": ["translation"]}],
}


@pytest.fixture
async def told(service: RunningService, platform: Platform, batch: str) -> str:
    """A batch of three essays that are spellchecked; nlp names two of them."""
    await platform.send(registered(batch, ["a", "b", "c"]), *[spellchecked(batch, essay) for essay in "abc"])
    await wait_until(lambda: platform.caught_up(service.group))
    await platform.send(phase_outcome(batch, "nlp", ["a", "b"]))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


def path_of(batch: str, pipeline: str, query: str = "") -> str:
    return f"/internal/v1/batches/{quote(batch, safe='')}/explain/{quote(pipeline, safe='')}{query}"


def explained(answer: Answer) -> Any:
    """The document, whose explanation implies the pipeline."""
    assert answer.status == 200, answer.body
    document = answer.json
    assert pipeline_of(document) == document["final_pipeline"]
    check_causes(document)
    return document


def problem(answer: Answer, status: int, kind: str) -> Any:
    assert (answer.status, answer.json["type"]) == (status, f"urn:bcs:problem:{kind}"), answer.body
    return answer.json


async def test_each_phase_is_explained_without_any_effect(orchestrator: Orchestrator, told: str) -> None:
    document = explained(await orchestrator.get(path_of(told, "comprehensive")))
    assert document["dry_run"] is True
    assert document["final_pipeline"] == ["nlp", "cj_assessment", "ai_feedback"]
    explanation = document["explanation"]
    assert explanation["archive"] == "not_configured"
    assert explanation["state_version"] > 0
    assert explanation["as_of"].keys() == {"events_behind", "seconds_behind", "measured_at"}
    spellcheck, nlp, cj, _ = explanation["phases"]
    assert (spellcheck["decision"], spellcheck["reason"]) == ("prune", "already_completed")
    assert [cause["cause"] for cause in spellcheck["causes"]] == ["completed_by_essays"]
    assert spellcheck["decided_by"]["fact"] == "essay_phase_ended"
    assert spellcheck["decided_by"]["archived"] is None
    [cause] = nlp["causes"]
    assert (cause["cause"], cause["essays"], cause["count"]) == ("essays_not_in_outcome", ["c"], 1)
    assert nlp["sentence"].endswith(f"not in the outcome completed_successfully of {cause['at']}: c.")
    assert cj["sentence"] == "cj_assessment runs: nothing was ever recorded about it."
    # A plain question has the same decisions, and none of the rest.
    plain = (await orchestrator.define(told, "comprehensive", dry_run=True)).json
    assert plain == {name: value for name, value in document.items() if name != "explanation"}


async def test_the_question_itself_can_be_explained_in_body_or_query(orchestrator: Orchestrator, told: str) -> None:
    by_body = explained(await orchestrator.define(told, "nlp", explain=True))
    body = {"batch_id": told, "requested_pipeline": "nlp", "correlation_id": "x"}
    by_query = explained(await orchestrator.request("POST", f"{DEFINE}?explain=true", json=body))
    plain = (await orchestrator.request("POST", DEFINE, json=body)).json
    for document in (by_body, by_query):
        del document["explanation"]["as_of"]
        assert {name: value for name, value in document.items() if name != "explanation"} == plain
    assert by_body == by_query
    for fields in ({}, {"explain": True}):
        answer = await orchestrator.request("POST", f"{DEFINE}?explain=maybe", json=body | fields)
        assert [one["field"] for one in problem(answer, 400, "invalid-request")["errors"]] == ["explain"]


async def test_all_essays_come_page_by_page(orchestrator: Orchestrator, told: str) -> None:
    whole = explained(await orchestrator.get(path_of(told, "nlp", "?explain=full")))
    check_essays(whole)
    assert whole["explanation"]["next"] is None
    assert (
        explained(await orchestrator.define(told, "nlp", explain="full", dry_run=True))["explanation"]["phases"]
        == (whole["explanation"]["phases"])
    )
    following: str | None = path_of(told, "nlp", "?explain=full&limit=2")
    pages = []
    while following:
        page = explained(await orchestrator.get(following))["explanation"]
        pages.append([phase["essays"] for phase in page["phases"]])
        following = page["next"]
    assert [len(first) for first, _ in pages] == [2, 1]
    for place in (0, 1):
        essays = [essay for page in pages for essay in page[place]]
        assert essays == whole["explanation"]["phases"][place]["essays"]


async def test_what_is_unknown_is_explained_or_refused(orchestrator: Orchestrator, batch: str) -> None:
    document = explained(await orchestrator.get(path_of(batch, "nlp")))
    assert document["essays_known"] == 0
    assert {cause["cause"] for phase in document["explanation"]["phases"] for cause in phase["causes"]} == {
        "never_recorded"
    }
    assert (
        "nlp" in problem(await orchestrator.get(path_of(batch, "unknown")), 404, "unknown-pipeline")["known_pipelines"]
    )
    for query in ("?explain=maybe", "?limit=0", "?explain=full&after="):
        problem(await orchestrator.get(path_of(batch, "nlp", query)), 400, "invalid-request")
    problem(await orchestrator.get("/internal/v1/batches/b/explain/%FF"), 400, "invalid-request")


async def test_forced_phases_run_and_the_others_are_announced_as_ever(
    orchestrator: Orchestrator, told: str, unique_name: Callable[[str], str]
) -> None:
    assert await orchestrator.to_run(told, "spellcheck") == []
    answer = await orchestrator.define(told, "spellcheck", force=["spellcheck"])
    assert answer.json["final_pipeline"] == ["spellcheck"]
    assert answer.json["options"] == {"force": ["spellcheck"]}
    assert answer.json["decisions"][0]["reason"] == "forced"
    assert await orchestrator.to_run(told, "nlp", force="requested") == ["nlp"]
    assert await orchestrator.to_run(told, "nlp", force="all") == ["spellcheck", "nlp"]
    document = explained(await orchestrator.define(told, "spellcheck", force="all", explain=True))
    [phase] = document["explanation"]["phases"]
    assert [cause["cause"] for cause in phase["causes"]] == ["forced", "completed_by_essays"]


async def test_phases_are_left_out_unless_others_need_them(orchestrator: Orchestrator, told: str) -> None:
    answer = (await orchestrator.define(told, "comprehensive", exclude=["spellcheck", "ai_feedback"])).json
    assert answer["final_pipeline"] == ["nlp", "cj_assessment"]
    assert answer["pruned_phases"] == []
    assert answer["left_out_phases"] == ["spellcheck", "ai_feedback"]
    assert await orchestrator.to_run(told, "comprehensive", until="nlp") == ["nlp"]
    assert await orchestrator.to_run(told, "comprehensive", only=["cj_assessment"]) == ["cj_assessment"]
    unknown = problem(await orchestrator.define(told, "nlp", force=["Elsas"]), 400, "invalid-request")
    assert [one["field"] for one in unknown["errors"]] == ["force"]
    assert "Elsas" not in json.dumps(unknown)


async def test_what_is_needed_and_not_complete_is_not_left_out(orchestrator: Orchestrator, batch: str) -> None:
    refused = problem(await orchestrator.define(batch, "nlp", exclude=["spellcheck"]), 409, "needed-phase-left-out")
    assert refused["needed_phases"] == [
        {"phase": "spellcheck", "needed_by": ["nlp"], "reason_text": "nothing is known of any essay in it"}
    ]


async def test_a_dry_run_answers_what_would_be_if(orchestrator: Orchestrator, told: str) -> None:
    asked = {"dry_run": True, "explain": True}
    failed = explained(await orchestrator.define(told, "nlp", assume_failed=["spellcheck"], **asked))
    assert failed["final_pipeline"] == ["spellcheck", "nlp"]
    done = explained(await orchestrator.define(told, "nlp", assume_completed=["nlp"], **asked))
    assert done["final_pipeline"] == []
    assert done["options"] == {"assume_completed": ["nlp"]}
    draft = explained(await orchestrator.define(told, "translated", definitions=DRAFT, **asked))
    assert draft["final_pipeline"] == ["translation"]
    settled = {"phases": [{"name": "nlp", "complete_when": "every_essay_settled"}]}
    assert await orchestrator.to_run(told, "nlp", definitions=settled, dry_run=True) == []


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"assume_completed": ["nlp"]}, "assume_completed"),
        ({"assume_failed": ["nlp"]}, "assume_failed"),
        ({"definitions": DRAFT}, "definitions"),
        ({"dry_run": True, "assume_failed": ["nlp"], "assume_completed": ["nlp"]}, "assume_failed"),
        ({"dry_run": True, "assume_failed": ["unknown"]}, "assume_failed"),
        ({"dry_run": True, "definitions": {"phases": []}}, "definitions.phases"),
        ({"dry_run": True, "definitions": {"phases": [{"name": f"p{n}"} for n in range(33)]}}, "definitions.phases"),
        ({"dry_run": True, "definitions": {"phases": [{"name": "nlp", "requires": ["p"]}]}}, "definitions"),
        ({"dry_run": True, "definitions": {"phases": [{"name": "nlp", "requires": ["nlp"]}]}}, "definitions"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"explain": "much"}, "explain"),
        ({"only": []}, "only"),
        ({"exclude": ["nlp"] * 101}, "exclude"),
        ({"until": "unknown"}, "until"),
    ],
)
async def test_wrong_options_are_named(
    orchestrator: Orchestrator, batch: str, fields: dict[str, Any], wrong: str
) -> None:
    document = problem(await orchestrator.define(batch, "nlp", **fields), 400, "invalid-request")
    assert {one["field"].partition(".")[0] for one in document["errors"]} == {wrong.partition(".")[0]}


async def test_an_answer_is_refused_while_the_intake_is_too_far_behind(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str
) -> None:
    away = {"use_mock_repository": True, "redis_url": "redis://127.0.0.1:1", "kafka_bootstrap_servers": "127.0.0.1:1"}
    async with (
        running_service(max_intake_lag_seconds=60.0, **away) as behind,
        Orchestrator(behind.base) as caller,
    ):
        for fields in ({}, {"dry_run": True}):
            answer = await caller.define(batch, "nlp", **fields)
            document = problem(answer, 503, "intake-behind")
            assert (document["events_behind"], document["seconds_behind"]) == (None, None)
            assert int(answer.headers["Retry-After"]) > 0
        as_of = explained(await caller.get(path_of(batch, "nlp")))["explanation"]["as_of"]
        assert as_of == {"events_behind": None, "seconds_behind": None, "measured_at": None}
        behind.service.kafka.offsets[topics.PHASE_OUTCOME, 0] = Offsets(0, 5, 5)
        behind.service.kafka._measured_ms = int(time.time() * 1000)
        assert (await caller.define(batch, "nlp")).status == 200
        behind.service.kafka._measured_ms -= 61_000
        assert problem(await caller.define(batch, "nlp"), 503, "intake-behind")["seconds_behind"] >= 61
        assert await caller.metric("bcs_pipeline_refusals_total", reason="intake_behind") == 3


@pytest.mark.release
@pytest.mark.serial
async def test_the_explanation_of_the_largest_batch_delays_nobody(redis_url: str) -> None:
    essays = [str(UUID(int=number)) for number in range(LARGE)]
    async with (
        running_service(redis_url=redis_url, kafka_bootstrap_servers="127.0.0.1:1") as large,
        Orchestrator(large.base) as caller,
    ):
        for phase in PHASES:
            known(large, "the-largest", essays, set(essays[::3]), phase)
        gaps: list[float] = []
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, large.run, watch_loop, gaps)
            for query in ("", "?explain=full&limit=5000"):
                answer = await caller.get(path_of("the-largest", "comprehensive", query))
                document = explained(answer)
                assert document["essays_known"] == LARGE
                assert len(answer.body) < 1_500_000
            settled = {"phases": [{"name": "spellcheck", "complete_when": "every_essay_settled"}]}
            for fields in ({"explain": True}, {"definitions": settled, "explain": True}):
                explained(await caller.define("the-largest", "spellcheck", dry_run=True, **fields))
            large.call(gaps.append, -1.0)
    assert max(gaps) < LONGEST_GAP_SECONDS, sorted(gaps)[-5:]
