"""The pipelines and their graphs over HTTP, and phases that only some replicas have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile

import pytest

from bcs.config.pipelines import load_pipelines
from bcs.domain.facts import EssaysRegistered
from bcs.domain.state import delta_of
from bcs.storage.ports import StateStore
from tests.support.events import phase_outcome, registered
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PIPELINES = "/internal/v1/pipelines"
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with service_in_thread(use_mock_repository=True, kafka_bootstrap_servers=NOWHERE) as running:
        yield running


# --- what can be requested -------------------------------------------------------------------------------------------


async def test_all_pipelines_are_listed_with_their_phases_in_order(service: RunningService) -> None:
    async with Orchestrator(service.base) as orchestrator:
        answer = (await orchestrator.get(PIPELINES)).json
    shipped = load_pipelines(None)
    assert answer["definitions"] == {"version": None, "hash": shipped.identity.content_hash}
    assert {one["name"]: [phase["name"] for phase in one["phases"]] for one in answer["pipelines"]} == {
        name: [phase.name for phase in shipped.plan(name)] for name in shipped.names
    }
    assert {one["name"] for one in answer["pipelines"] if one["kind"] == "pipeline"} == {"comprehensive"}


@pytest.mark.parametrize(
    ("query", "media_type", "begins"),
    [
        ("", "text/plain; charset=utf-8", "flowchart LR"),
        ("?format=dot", "text/vnd.graphviz; charset=utf-8", "digraph phases {"),
        ("?format=svg", "image/svg+xml", "<svg "),
    ],
)
async def test_a_graph_in_each_language(service: RunningService, query: str, media_type: str, begins: str) -> None:
    store: StateStore = service.service.store
    service.run(store.commit, "drawn", delta_of([EssaysRegistered(("1", "2"), 2, 0)]))
    async with Orchestrator(service.base) as orchestrator:
        plain = await orchestrator.get(f"{PIPELINES}/ai_feedback/graph{query}")
        of_batch = await orchestrator.get(f"{PIPELINES}/ai_feedback/graph{query}{'&' if query else '?'}batch=drawn")
    for answer in (plain, of_batch):
        assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
        assert answer.body.decode().startswith(begins)
        assert b"cj_assessment" not in answer.body
    assert b"open: 0 of 2" in of_batch.body
    assert b"of 2" not in plain.body


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("unknown/graph", 404, "unknown-pipeline"),
        ("nlp/graph?batch=never-seen", 404, "unknown-batch"),
        ("nlp/graph?format=png", 400, "invalid-request"),
        ("nlp/graph?batch=", 400, "invalid-request"),
    ],
)
async def test_a_graph_that_can_not_be_drawn(service: RunningService, path: str, status: int, kind: str) -> None:
    async with Orchestrator(service.base) as orchestrator:
        answer = await orchestrator.get(f"{PIPELINES}/{path}")
    assert (answer.status, answer.json["type"]) == (status, f"urn:bcs:problem:{kind}")


# --- replicas with different files -----------------------------------------------------------------------------------


@pytest.fixture
def new_file(tmp_path: Path) -> Path:
    path = tmp_path / "new.yaml"
    path.write_text("version: new\nphases: [{name: spellcheck}, {name: grammar, requires: [spellcheck]}]")
    return path


@pytest.mark.release
async def test_a_phase_that_only_new_replicas_have_is_kept_by_old_ones(
    redis_url: str,
    kafka_bootstrap_servers: str,
    redis_key_prefix: str,
    new_file: Path,
    tmp_path: Path,
    unique_name: Callable[[str], str],
) -> None:
    """Old and new replicas share the partitions, so which one reads an outcome of the new phase is chance."""
    old_file = tmp_path / "old.yaml"
    old_file.write_text("version: old\nphases: [{name: spellcheck}]")
    common = {
        "redis_url": redis_url,
        "redis_key_prefix": redis_key_prefix,
        "kafka_bootstrap_servers": kafka_bootstrap_servers,
        "kafka_consumer_group_id": redis_key_prefix,
        "keep_unknown_phases": True,
    }
    batches = [unique_name(f"batch-{number}") for number in range(8)]
    with (
        service_in_thread(**common, pipeline_config_path=old_file, instance_name="old") as old,
        service_in_thread(**common, pipeline_config_path=new_file, instance_name="new") as new,
    ):
        for running in (old, new):
            running.run(running.service.definitions.reload, "test")
        async with (
            Platform(kafka_bootstrap_servers) as platform,
            Orchestrator(old.base) as of_old,
            Orchestrator(new.base) as of_new,
        ):
            for batch in batches:
                await platform.send(
                    registered(batch, ["1", "2"]),
                    phase_outcome(batch, "spellcheck", ["1", "2"]),
                    phase_outcome(batch, "grammar", ["1", "2"]),
                )
            await wait_until(lambda: platform.caught_up(redis_key_prefix), 30)
            for batch in batches:
                assert await of_new.to_run(batch, "grammar") == []
                assert (await of_old.define(batch, "grammar")).status == 404
            for orchestrator in (of_old, of_new):
                letters = await orchestrator.samples("bcs_dead_letters_total")
                assert not [labels for name, labels, value in letters if name.endswith("_total") and value]

            report = await of_old.complete(batches[0], "grammar")
            assert (report.status, len(report.json["warnings"])) == (200, 1)
            assert (await of_old.complete(batches[0], "No Phase")).status == 400
            assert "warnings" not in (await of_new.complete(batches[0], "grammar")).json

            copyfile(new_file, old_file)
            assert (await of_old.request("POST", f"{PIPELINES}/reload")).json["phases_added"] == ["grammar"]
            for batch in batches:
                assert await of_old.to_run(batch, "grammar") == [], "a later definition uses what was kept"


async def test_without_the_setting_a_phase_that_nobody_knows_is_refused(service: RunningService) -> None:
    async with Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.complete("batch", "grammar")).status == 400
        assert (await orchestrator.complete("batch", "student_matching")).status == 200, "the platform's list has it"
