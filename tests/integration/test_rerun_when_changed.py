"""A phase with `rerun_when_changed` runs again after its definition has changed, and only once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, RecordedUnder
from bcs.domain.pipelines import Phase
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.explanation_checker import check_causes, pipeline_of
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

RELOAD = "/internal/v1/pipelines/reload"
ESSAYS = ("a", "b", "c")


def definitions(revision: str, *, again: bool = False) -> str:
    return f"""
phases:
  - {{name: spellcheck, rerun_when_changed: true, revision: "{revision}"}}
  - {{name: ai_feedback, requires: [spellcheck], rerun_with_dependencies: {str(again).lower()}}}
"""


def hash_of(revision: str) -> str:
    return Phase("spellcheck", revision=revision).definition


class Caller:
    """Asks a service, and gives it another pipeline file."""

    def __init__(self, orchestrator: Orchestrator, file: Path) -> None:
        self.orchestrator = orchestrator
        self._file = file

    async def use(self, text: str) -> Any:
        self._file.write_text(text)
        answer = await self.orchestrator.request("POST", RELOAD)
        assert answer.status == 200, answer.body
        return answer.json

    async def define(self, batch: str, pipeline: str = "ai_feedback", **fields: object) -> Any:
        answer = await self.orchestrator.define(batch, pipeline, **fields)
        assert answer.status == 200, answer.body
        return answer.json

    async def reasons(self, batch: str, pipeline: str = "ai_feedback", **fields: object) -> list[str]:
        return [decision["reason"] for decision in (await self.define(batch, pipeline, **fields))["decisions"]]

    async def explain(self, batch: str) -> Any:
        document = (await self.orchestrator.get(f"/internal/v1/batches/{batch}/explain/ai_feedback")).json
        assert pipeline_of(document) == document["final_pipeline"]
        check_causes(document)
        return document["explanation"]["phases"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("definitions") / "pipelines.yaml"
    path.write_text(definitions("1"))
    return path


@pytest.fixture(scope="module")
def service(file: Path) -> Iterator[RunningService]:
    with service_in_thread(
        use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1", pipeline_config_path=file
    ) as running:
        yield running


@pytest.fixture
async def caller(service: RunningService, file: Path) -> AsyncIterator[Caller]:
    async with Orchestrator(service.base, keep_alive=True) as orchestrator:
        caller = Caller(orchestrator, file)
        await caller.use(definitions("1"))
        yield caller


async def test_a_changed_phase_runs_again_until_it_has_completed_again(caller: Caller, batch: str) -> None:
    for phase in ("spellcheck", "ai_feedback"):
        await caller.orchestrator.complete(batch, phase)
    assert await caller.reasons(batch) == ["already_completed", "already_completed"]

    changed = await caller.use(definitions("2"))
    again = {"phase": "spellcheck", "before": hash_of("1"), "after": hash_of("2")}
    assert changed["runs_again"] == [again]
    answer = await caller.define(batch)
    assert (answer["final_pipeline"], answer["pruned_phases"]) == (["spellcheck"], ["ai_feedback"])
    decision = answer["decisions"][0]
    found = decision["definition_changed"]
    assert (found["before"], found["after"], found["completed_since"]) == (hash_of("1"), hash_of("2"), 0)
    assert decision["reason_text"] == (
        f"its definition changed since it completed on {found['completed_at']} ({hash_of('1')} → {hash_of('2')})"
    )
    explained, _ = await caller.explain(batch)
    assert (explained["decision"], explained["definition"]) == ("run", hash_of("2"))
    assert explained["older_definition"]["definition"] == hash_of("1")

    await caller.orchestrator.complete(batch, "spellcheck")
    assert await caller.reasons(batch) == ["already_completed", "already_completed"]
    # It ran under the second definition, so going back changes it once more.
    await caller.use(definitions("1"))
    assert await caller.reasons(batch) == ["definition_changed", "already_completed"]


async def test_phases_after_a_changed_one_run_again_where_the_file_says_so(caller: Caller, batch: str) -> None:
    for phase in ("spellcheck", "ai_feedback"):
        await caller.orchestrator.complete(batch, phase)
    await caller.use(definitions("2", again=True))
    assert await caller.reasons(batch) == ["definition_changed", "dependency_runs_again"]
    assert await caller.reasons(batch, force=["spellcheck"], dry_run=True) == [
        "definition_changed",
        "dependency_runs_again",
    ]


async def test_what_if_shows_what_a_change_would_cost(caller: Caller) -> None:
    for batch in ("one", "two"):
        await caller.orchestrator.complete(batch, "spellcheck")
    phases = [{"name": "spellcheck", "rerun_when_changed": True, "revision": "2"}]
    draft = {"phases": phases}
    answer = await caller.define("one", pipeline="spellcheck", definitions=draft, dry_run=True)
    assert [decision["reason"] for decision in answer["decisions"]] == ["definition_changed"]
    planned = await caller.orchestrator.request(
        "POST",
        "/internal/v1/pipelines/plan",
        json={"batch_ids": ["one", "two", "new"], "requested_pipeline": "spellcheck", "definitions": draft},
    )
    assert planned.status == 200, planned.body
    assert planned.body.count(b'"definition_changed"') == 2
    assert await caller.reasons("one", pipeline="spellcheck") == ["already_completed"]


async def test_a_completion_of_an_unknown_definition_counts_as_unchanged(caller: Caller, batch: str) -> None:
    await caller.use("phases: [{name: spellcheck}, {name: ai_feedback, requires: [spellcheck]}]")
    await caller.orchestrator.complete(batch, "spellcheck")
    await caller.use(definitions("2"))
    explained, _ = await caller.explain(batch)
    assert (explained["decision"], explained["causes"][0]["cause"]) == ("prune", "definition_unknown")
    assert "is not known, so it counts as unchanged" in explained["sentence"]


def ended(at_us: int, essays: tuple[str, ...] = ESSAYS, phase: str = "spellcheck") -> list[Fact]:
    return [EssayPhaseEnded(phase, essay, Outcome.COMPLETED, at_us) for essay in essays]


@pytest.mark.release
async def test_every_store_knows_under_which_definition_a_phase_completed(
    tmp_path: Path, file: Path, database_url: str
) -> None:
    seconds = count(1_700_000_000_000_000, 1_000_000)
    async with ServiceWithArchive(tmp_path, database_url, pipeline_config_path=file) as service:
        caller = Caller(service.orchestrator, file)
        await caller.use(definitions("1"))
        first_us = next(seconds)
        registered: list[Fact] = [EssaysRegistered(ESSAYS, len(ESSAYS), 1), *ended(first_us, phase="ai_feedback")]
        await service.apply("b", [*registered, *ended(first_us)])
        await caller.use(definitions("2"))
        await service.apply("b", ended(next(seconds), ("a",)))
        under = {hash_of("1"): first_us, hash_of("2"): first_us + 1_000_000}
        assert (await service.state("b")).definitions == {"spellcheck": under}

        async def answer(source: str) -> dict[str, Any]:
            document = await caller.define("b")
            assert document["source"] == source
            decision: dict[str, Any] = document["decisions"][0]
            assert decision["reason"] == "definition_changed"
            assert decision["definition_changed"]["completed_since"] == 1
            return decision

        decision = await answer("redis")
        await service.flush()
        assert await answer("redis") == decision, "filled up from the archive"
        await service.restart()
        caller = Caller(service.orchestrator, file)
        await caller.use(definitions("2"))
        assert await answer("redis") == decision, "from the summary or the facts in Redis"

        entries = await service.history_facts("b")
        assert entries[-1][-1] == RecordedUnder("spellcheck", hash_of("2"), first_us + 1_000_000)
        service.redis_proxy.refuse()
        await service.redis_proxy.cut()

        async def by_postgresql() -> bool:
            found = await service.resolve("b")
            return found.status == 200 and found.json["source"] == "postgresql"

        await wait_until(by_postgresql)
        assert await answer("postgresql") == decision
        service.redis_proxy.accept()
        await service.wait_for_redis()

        await service.apply("b", ended(next(seconds)))
        document = await caller.define("b")
        assert document["final_pipeline"] == []


async def test_nothing_is_kept_of_a_phase_without_the_option(
    service: RunningService, caller: Caller, batch: str
) -> None:
    await caller.use("phases: [{name: spellcheck, revision: 7}, {name: ai_feedback, rerun_when_changed: true}]")
    for phase in ("spellcheck", "ai_feedback"):
        await caller.orchestrator.complete(batch, phase)
    state = await anyio.to_thread.run_sync(service.run, service.service.store.state, batch)
    assert state.definitions.keys() == {"ai_feedback"}
