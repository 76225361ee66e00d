"""The pipeline file is read again while the service runs: whole or not at all, and no request sees a mixture."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bcs.config.pipelines import load_pipelines
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.state import delta_of
from bcs.http.requests import DEFINITIONS_HEADER
from bcs.usecases.active_definitions import Rules
from tests.support.commands import bcs
from tests.support.service import Answer, Orchestrator, RunningService, service_in_thread

pytestmark = pytest.mark.anyio

PIPELINES = "/internal/v1/pipelines"
RELOAD = f"{PIPELINES}/reload"
NOWHERE = "127.0.0.1:1"
# If one of two essays failed in each phase, every phase is decided differently, and in another order.
FIRST = """
version: first
phases: [{name: a}, {name: b}, {name: c}]
pipelines: [{name: all_of_it, phases: [a, b, c]}]
"""
SECOND = """
version: second
phases:
  - {name: c, complete_when: every_essay_settled}
  - {name: b, complete_when: every_essay_settled, requires: [c]}
  - {name: a, complete_when: every_essay_settled, requires: [b]}
pipelines: [{name: all_of_it, phases: [a]}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(FIRST)
    return path


@pytest.fixture
def service(file: Path) -> Iterator[RunningService]:
    with service_in_thread(
        use_mock_repository=True, kafka_bootstrap_servers=NOWHERE, pipeline_config_path=file
    ) as running:
        yield running


@asynccontextmanager
async def caller(service: RunningService) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(service.base, keep_alive=True) as orchestrator:
        yield orchestrator


def write(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_text(text)


async def reload(orchestrator: Orchestrator, file: Path, text: str | None) -> Answer:
    write(file, text)
    return await orchestrator.request("POST", RELOAD)


def identity(file: Path) -> str:
    return str(load_pipelines(file).identity)


# The service starts with the definitions that ship, so each test reads the file first.
async def test_a_valid_file_is_used_from_now_on(service: RunningService, file: Path) -> None:
    async with caller(service) as orchestrator:
        answer = await reload(orchestrator, file, FIRST)
        assert (answer.status, answer.json["status"]) == (200, "reloaded")
        assert answer.json["phases_added"] == ["a", "b", "c"]
        assert answer.json["phases_removed"] == ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
        assert answer.json["before"]["version"] is None
        assert answer.json["definitions"]["version"] == "first"
        again = await reload(orchestrator, file, FIRST)
        assert (again.json["status"], again.json["changes"]) == ("unchanged", [])

        changed = (await reload(orchestrator, file, SECOND)).json
        assert {change["option"] for change in changed["options_changed"]} == {"requires", "complete_when"}
        assert {"pipeline": "all_of_it", "before": ["a", "b", "c"], "after": ["c", "b", "a"]} in changed[
            "pipelines_changed"
        ]
        assert "phase a: requires is b, before nothing" in changed["changes"]
        defined = await orchestrator.define("batch", "all_of_it")
        assert defined.json["final_pipeline"] == ["c", "b", "a"]
        assert defined.headers[DEFINITIONS_HEADER] == identity(file)
        assert (await orchestrator.get(PIPELINES)).json["definitions"] == changed["definitions"]

        health = (await orchestrator.get("/healthz")).json["definitions"]
        assert (health["version"], health["problem"]) == ("second", None)
        in_use = [(labels, value) for _, labels, value in await orchestrator.samples("bcs_pipeline_definitions_info")]
        assert in_use == [(changed["definitions"], 1)]
        assert await orchestrator.metric("bcs_pipeline_definitions_reloads_total", outcome="reloaded") == 2
        assert await orchestrator.metric("bcs_pipeline_definitions_reloads_total", outcome="unchanged") == 1


async def test_the_command_shows_what_has_changed(service: RunningService, file: Path) -> None:
    write(file, "version: 2\nphases: [{name: a}]")
    ran = await bcs("pipelines", "reload", "--url", service.base)
    assert ran.exit_code == 0
    assert ran.output.splitlines()[:2] == [f"reloaded: {identity(file)}", "  version: 2, before none"]
    write(file, "phases: [{name: a, requires: [b]}]")
    ran = await bcs("pipelines", "reload", "--url", service.base)
    assert (ran.exit_code, ran.output) == (1, "")
    assert "409 Conflict" in ran.error
    assert "'b', which is not defined" in ran.error


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("phases: [{name: a, requires: [b]}]", "'b'"),
        ("phases: {", "line 1"),
        ("phases: [{name: a}]\npipelines: [{name: p, pipelines: [q]}, {name: q, pipelines: [p]}]", "p -> q"),
        ("? [a]\n: b", "not"),
        (None, "No such file"),
    ],
)
async def test_a_file_that_is_not_valid_changes_nothing(
    service: RunningService, file: Path, text: str | None, named: str
) -> None:
    async with caller(service) as orchestrator:
        in_use = (await reload(orchestrator, file, SECOND)).json["definitions"]
        second = identity(file)
        refused = await reload(orchestrator, file, text)
        assert (refused.status, refused.json["type"]) == (409, "urn:bcs:problem:definitions-refused")
        assert named in str(refused.json["problems"]) or named == "not"
        assert refused.json["in_use"] == second

        defined = await orchestrator.define("batch", "all_of_it")
        assert (defined.json["final_pipeline"], defined.headers[DEFINITIONS_HEADER]) == (["c", "b", "a"], second)
        health = (await orchestrator.get("/healthz")).json
        assert health["definitions"].items() >= in_use.items()
        assert health["definitions"]["problem"] == "; ".join(refused.json["problems"])
        assert "definitions" not in health["message"]
        assert await orchestrator.metric("bcs_pipeline_definitions_outdated") == 1
        assert await orchestrator.metric("bcs_pipeline_definitions_reloads_total", outcome="refused") == 1

        assert (await reload(orchestrator, file, SECOND)).json["status"] == "unchanged"
        assert (await orchestrator.get("/healthz")).json["definitions"]["problem"] is None
        assert await orchestrator.metric("bcs_pipeline_definitions_outdated") == 0


def half(phase: str) -> list[EssayPhaseEnded]:
    """One of two essays failed in a phase."""
    outcomes = (("1", Outcome.COMPLETED), ("2", Outcome.FAILED))
    return [EssayPhaseEnded(phase, essay, outcome, 1) for essay, outcome in outcomes]


@pytest.fixture
def with_redis(redis_url: str, file: Path) -> Iterator[RunningService]:
    """A request waits for Redis, and a reload can come meanwhile."""
    with service_in_thread(redis_url=redis_url, kafka_bootstrap_servers=NOWHERE, pipeline_config_path=file) as running:
        yield running


async def under_load(service: RunningService, file: Path, reloads: int) -> dict[str, int]:
    """Reload the two files in turns while callers ask, and check that each answer is of one file as a whole."""
    expected: dict[str, tuple[list[str], ...]] = {}
    seen: dict[str, int] = {}
    asking = anyio.Event()

    def of(answer: Answer) -> tuple[list[str], ...]:
        members = answer.json
        decisions = [f"{one['phase']} {one['runs']} {one['complete_when']}" for one in members["decisions"]]
        return members["final_pipeline"], members["pruned_phases"], decisions

    async def ask(orchestrator: Orchestrator) -> None:
        while not asking.is_set():
            for options in ({}, {"only": ["a", "b", "c"]}, {"dry_run": True, "explain": True}):
                answer = await orchestrator.define("batch", "all_of_it", **options)
                assert answer.status == 200, answer.body
                named = answer.headers[DEFINITIONS_HEADER]
                assert of(answer) == expected[named], (named, options)
                seen[named] = seen.get(named, 0) + 1
            plan = {"batch_ids": ["batch"], "requested_pipeline": "all_of_it"}
            answer = await orchestrator.request("POST", f"{PIPELINES}/plan", json=plan)
            planned = json.loads(answer.body.splitlines()[0])
            assert planned["final_pipeline"] in [to_run for to_run, *_ in expected.values()], answer.body

    known = delta_of([EssaysRegistered(("1", "2"), 2, 0), *(ended for phase in "abc" for ended in half(phase))])
    service.run(service.service.store.commit, "batch", known)
    async with caller(service) as orchestrator:
        for text in (SECOND, FIRST):
            await reload(orchestrator, file, text)
            answer = await orchestrator.define("batch", "all_of_it")
            expected[answer.headers[DEFINITIONS_HEADER]] = of(answer)
        assert [sorted(to_run) for to_run, *_ in expected.values()] == [[], ["a", "b", "c"]]
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(ask, orchestrator)
            for number in range(reloads):
                answer = await reload(orchestrator, file, SECOND if number % 2 else FIRST)
                assert answer.status == 200
            asking.set()
    return seen


def alive() -> tuple[int, int]:
    gc.collect()
    found = [type(each) for each in gc.get_objects()]
    return found.count(PipelineDefinitions), found.count(Rules)


@pytest.mark.parametrize("reloads", [12, pytest.param(1_000, marks=pytest.mark.release)])
async def test_under_load_no_request_sees_a_mixture_and_nothing_leaks(
    with_redis: RunningService, file: Path, reloads: int
) -> None:
    before = alive()
    assert len(await under_load(with_redis, file, reloads)) == 2, "both were asked"
    assert alive() == before, "the old definitions are gone"
    async with caller(with_redis) as orchestrator:
        series = await orchestrator.samples("bcs_pipeline_definitions_info")
        assert len(series) == 1
