"""Plans for many batches at once, from a running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import psutil
import pytest

from bcs.config.pipelines import load_pipelines
from bcs.config.store_urls import redis_url as url_of_redis
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import delta_of
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.test_explain import DRAFT, problem
from tests.support.commands import bcs
from tests.support.service import Answer, Orchestrator, RunningService, serve

pytestmark = pytest.mark.anyio

PLAN = "/internal/v1/pipelines/plan"
ESSAYS = [f"essay-{number}" for number in range(30)]
DONE = Outcome.COMPLETED


def facts(nlp: int = 29) -> list[Fact]:
    """Thirty essays: all are spellchecked, some have completed nlp."""
    ended = [EssayPhaseEnded("spellcheck", essay, DONE, 2) for essay in ESSAYS]
    ended += [EssayPhaseEnded("nlp", essay, DONE, 3) for essay in ESSAYS[:nlp]]
    return [EssaysRegistered(tuple(ESSAYS), len(ESSAYS), 1), *ended]


async def plan(caller: Orchestrator, batches: list[str], pipeline: str = "nlp", **fields: object) -> Answer:
    return await caller.request("POST", PLAN, json={"batch_ids": batches, "requested_pipeline": pipeline, **fields})


def lines(answer: Answer) -> tuple[list[Any], Any]:
    """The lines of the batches, and the last one."""
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    *batches, last = [json.loads(line) for line in answer.body.splitlines()]
    return batches, last


@pytest.fixture
async def batches(service: RunningService, unique_name: Callable[[str], str]) -> list[str]:
    """Three batches in different states."""
    names = [unique_name("planned") for _ in range(3)]
    for name, nlp in zip(names, (29, 30, 0), strict=True):
        await anyio.to_thread.run_sync(service.run, service.service.store.commit, name, delta_of(facts(nlp)))
    return names


async def test_a_plan_says_of_each_batch_what_a_question_would(
    orchestrator: Orchestrator, batches: list[str], unique_name: Callable[[str], str]
) -> None:
    asked = [*batches, unique_name("unknown"), batches[0]]
    for options in ({}, {"force": "all"}, {"exclude": ["spellcheck"]}, {"until": "spellcheck"}):
        for pipeline in ("nlp", "comprehensive"):
            if options == {"exclude": ["spellcheck"]}:
                continue
            planned, _ = lines(await plan(orchestrator, asked, pipeline, **options))
            assert [one["batch_id"] for one in planned] == asked
            for one in planned:
                answer = (await orchestrator.define(one["batch_id"], pipeline, dry_run=True, **options)).json
                for name in ("final_pipeline", "pruned_phases", "registered", "essays_known", "essays_expected"):
                    assert one[name] == answer[name]
                assert one["reasons"] == {each["phase"]: each["reason"] for each in answer["decisions"]}
                assert one["source"] == answer["source"]


async def test_the_last_line_adds_up(
    orchestrator: Orchestrator, batches: list[str], unique_name: Callable[[str], str]
) -> None:
    _, last = lines(await plan(orchestrator, [*batches, unique_name("unknown")], "nlp"))
    assert last == {
        "totals": {
            "pipeline": "nlp",
            "batches": 4,
            "unknown": 1,
            "nothing_to_run": 1,
            "failed": 0,
            "phases": {
                "spellcheck": {"runs": 1, "pruned": 3, "left_out": 0, "essays": 0, "outstanding": 0},
                "nlp": {"runs": 3, "pruned": 1, "left_out": 0, "essays": 60, "outstanding": 31},
            },
        }
    }
    assumed = {"assume_completed": ["nlp"], "until": "spellcheck"}
    _, last = lines(await plan(orchestrator, batches, "nlp", **assumed))
    assert last["options"] == {"assume_completed": ["nlp"], "until": "spellcheck"}
    assert last["totals"]["phases"]["nlp"]["left_out"] == 3
    _, last = lines(await plan(orchestrator, batches, "translated", definitions=DRAFT))
    assert last["totals"]["phases"]["translation"]["runs"] == 3


async def test_a_batch_without_an_answer_does_not_keep_the_others_from_theirs(
    orchestrator: Orchestrator, batches: list[str], unique_name: Callable[[str], str]
) -> None:
    asked = [batches[0], unique_name("unknown"), batches[1]]
    planned, last = lines(await plan(orchestrator, asked, "nlp", exclude=["spellcheck"]))
    assert [one.get("final_pipeline") for one in planned] == [["nlp"], None, []]
    refused = planned[1]["problem"]
    assert (refused["type"], refused["status"]) == ("urn:bcs:problem:needed-phase-left-out", 409)
    assert refused["needed_phases"][0]["phase"] == "spellcheck"
    assert (last["totals"]["batches"], last["totals"]["failed"]) == (3, 1)


async def test_a_plan_that_no_batch_can_have_is_refused(orchestrator: Orchestrator, batch: str) -> None:
    problem(await plan(orchestrator, [batch], "unknown"), 404, "unknown-pipeline")
    wrong: list[dict[str, Any]] = [
        {"batch_ids": []},
        {"batch_ids": ["b"] * 1001},
        {"batch_ids": [""]},
        {"force": ["unknown"]},
        {"definitions": {"phases": [{"name": "nlp", "requires": ["p"]}]}},
    ]
    for fields in wrong:
        body = {"batch_ids": [batch], "requested_pipeline": "nlp", **fields}
        document = problem(await orchestrator.request("POST", PLAN, json=body), 400, "invalid-request")
        assert {one["field"].partition(".")[0] for one in document["errors"]} == set(fields)


@pytest.mark.release
@pytest.mark.serial
async def test_a_thousand_batches_are_planned_in_a_second_at_half_the_cost_of_as_many_questions(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str
) -> None:
    names = [f"batch-{number}" for number in range(1_000)]
    with serve(tmp_path, redis_url, kafka_bootstrap_servers, forked=False) as process:
        await process.answers()
        gateway = RedisGateway(
            url_of_redis(redis_url),
            max_connections=4,
            deadline_seconds=5.0,
            breaker_failures=9,
            breaker_open_seconds=1.0,
        )
        store = RedisStateStore(
            gateway,
            law=load_pipelines(None).law(require_registration=False),
            key_prefix=process.environment["BCS_REDIS_KEY_PREFIX"],
            ttl_seconds=600,
        )
        for number, name in enumerate(names):
            await store.commit(name, delta_of(facts(number % 31)))
        await gateway.aclose()
        program = psutil.Process(process.process.pid)

        def cpu() -> float:
            times = program.cpu_times()
            return float(times.user + times.system)

        async def cost(work: Any) -> tuple[float, float]:
            began, before = perf_counter(), cpu()
            await work()
            return perf_counter() - began, cpu() - before

        async with Orchestrator(process.base, keep_alive=True) as caller:

            async def planning() -> None:
                assert lines(await plan(caller, names, "nlp"))[1]["totals"]["failed"] == 0

            async def asking() -> None:
                waiting = iter(names)

                async def ask() -> None:
                    for name in waiting:
                        assert (await caller.define(name, "nlp")).status == 200

                async with anyio.create_task_group() as group:
                    for _ in range(16):
                        group.start_soon(ask)

            costs = {
                name: await cost(work)
                for name, work in (
                    ("cold plan", planning),
                    ("cold questions", asking),
                    ("warm plan", planning),
                    ("warm questions", asking),
                )
            }
        for warmth in ("cold", "warm"):
            seconds, cpu_seconds = costs[f"{warmth} plan"]
            assert seconds < 1.0, costs
            assert cpu_seconds <= costs[f"{warmth} questions"][1] / 2, costs


@pytest.mark.release
async def test_the_command_sums_up_what_would_run(
    service: RunningService, batches: list[str], tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    unknown = unique_name("unknown")
    given = "\n".join([*batches, "", f"  {unknown}  "])
    url = ("--url", service.base)
    ran = await bcs("plan", "--pipeline", "nlp", *url, given=given)
    assert (ran.exit_code, ran.error) == (0, "")
    rows = [line.split() for line in ran.output.splitlines()]
    assert " ".join(rows[0]) == "4 batches planned for nlp: nothing is to run for 1, and 1 is unknown"
    assert ["spellcheck", "1", "3", "0", "0"] in rows
    assert ["nlp", "3", "1", "60", "31"] in rows
    file = tmp_path / "batches.txt"
    file.write_text(given)
    ran = await bcs("plan", str(file), "--pipeline", "nlp", "--assume-completed", "nlp", "--json", *url)
    assert [one["batch_id"] for one in ran.json["batches"]] == [*batches, unknown]
    assert ran.json["totals"]["phases"]["nlp"]["runs"] == 0
    ran = await bcs("plan", str(file), "--pipeline", "nlp", "--exclude", "spellcheck", *url)
    assert ran.exit_code == 1
    assert f"{unknown}: the request leaves out what nlp needs" in ran.output
    assert (await bcs("plan", "--pipeline", "nlp", *url, given="\n \n")).exit_code == 2
    many = await bcs(
        "plan", "--pipeline", "nlp", "--json", *url, given="\n".join(f"{unknown}-{n}" for n in range(1_001))
    )
    assert many.json["totals"]["batches"] == len(many.json["batches"]) == many.json["totals"]["unknown"] == 1_001
