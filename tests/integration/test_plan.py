"""Plans for many batches at once, from a running service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import psutil
import pytest

from bcs.config.pipelines import load_pipelines
from bcs.config.store_urls import redis_url as url_of_redis
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import delta_of
from bcs.storage.redis.batch_index import RedisBatchIndex
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.test_explain import DRAFT, problem
from tests.support.commands import bcs
from tests.support.fault_proxy import FaultProxy
from tests.support.service import Answer, Orchestrator, RunningService, running_service, serve
from tests.support.waiting import wait_until

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
    await anyio.to_thread.run_sync(write_index, service)
    return names


def write_index(service: RunningService) -> None:
    index = service.service.persistence.written_index
    assert index
    service.run(index.flush)


async def select(caller: Orchestrator, pipeline: str = "nlp", /, **selection: object) -> tuple[list[Any], Any]:
    answer = await caller.request("POST", PLAN, json={"selection": selection, "requested_pipeline": pipeline})
    return lines(answer)


async def pages(caller: Orchestrator, **selection: object) -> AsyncIterator[tuple[list[Any], Any]]:
    """All plans of a selection."""
    while True:
        planned, last = await select(caller, **selection)
        yield planned, last
        if last["selection"]["next_cursor"] is None:
            return
        selection["cursor"] = last["selection"]["next_cursor"]


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
    assert last.pop("as_of").keys() == {"events_behind", "seconds_behind", "measured_at"}
    assert last.pop("definitions").keys() == {"version", "hash"}
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


async def test_a_plan_names_the_definitions_and_the_lag_of_the_intake(
    orchestrator: Orchestrator, batches: list[str]
) -> None:
    answer = await plan(orchestrator, batches)
    _, last = lines(answer)
    asked = await orchestrator.define(batches[0], "nlp", dry_run=True, explain=True)
    assert answer.headers["X-BCS-Definitions"] == asked.headers["X-BCS-Definitions"] == last["definitions"]["hash"]
    assert last["as_of"].keys() == asked.json["explanation"]["as_of"].keys()
    answer = await plan(orchestrator, batches, "translated", definitions=DRAFT)
    assert answer.headers["X-BCS-Definitions"] != asked.headers["X-BCS-Definitions"]
    assert lines(answer)[1]["definitions"]["hash"] == answer.headers["X-BCS-Definitions"]


async def test_a_selection_has_the_batches_that_the_list_finds(orchestrator: Orchestrator, batches: list[str]) -> None:
    listed, _ = lines(await plan(orchestrator, batches))
    wanted = {"state": "incomplete", "pipeline": "nlp"}
    for selection in (
        {},
        wanted,
        {"phase": "nlp"},
        {"since": "2020-01-01T00:00:00Z"},
        {"until": "2020-01-01T00:00:00Z"},
    ):
        found = (await orchestrator.request("GET", "/internal/v1/batches", params={**selection, "limit": 500})).json
        planned, last = await select(orchestrator, **selection)
        assert [one["batch_id"] for one in planned] == [one["batch_id"] for one in found["batches"]]
        assert last["totals"]["batches"] == len(planned)
        assert last["selection"] == {"source": "redis", "scanned": found["scanned"], "next_cursor": None}
    planned, _ = await select(orchestrator, **wanted)
    assert [one for one in planned if one["batch_id"] in batches] == [listed[2], listed[0]]


async def test_a_selection_goes_on_where_the_plan_before_ended(orchestrator: Orchestrator, batches: list[str]) -> None:
    seen: set[str] = set()
    async for planned, last in pages(orchestrator, limit=2):
        assert len(planned) <= 2
        assert last["totals"]["batches"] == len(planned)
        seen |= {one["batch_id"] for one in planned}
    assert set(batches) <= seen


async def test_a_selection_that_contradicts_itself_is_refused(orchestrator: Orchestrator, batch: str) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "body": {},
        "selection.phase": {"selection": {"phase": "nlp", "pipeline": "nlp"}},
        "selection.cursor": {"selection": {"cursor": "x"}},
        "selection.limit": {"selection": {"limit": 1_001}},
        "selection.since": {"selection": {"since": "yesterday"}},
        "selection.state": {"selection": {"state": "unknown"}},
    }
    for field, fields in wrong.items():
        answer = await orchestrator.request("POST", PLAN, json={"requested_pipeline": "nlp", **fields})
        assert [one["field"] for one in problem(answer, 400, "invalid-request")["errors"]] == [field]
    both = {"selection": {}, "batch_ids": [batch], "requested_pipeline": "nlp"}
    problem(await orchestrator.request("POST", PLAN, json=both), 400, "invalid-request")
    problem(await orchestrator.request("POST", PLAN, json={**both, "batch_ids": None}), 400, "invalid-request")
    for limit, status in ((5.0, 200), (5.5, 400), ("5", 400), (True, 400)):
        body = {"requested_pipeline": "nlp", "selection": {"limit": limit, "stale_seconds": 5.0}}
        assert (await orchestrator.request("POST", PLAN, json=body)).status == status
    for since, status in (("2026-01-31T08:00:00Z", 200), (None, 200), (5, 400), (-2e-313, 400), (True, 400)):
        body = {"requested_pipeline": "nlp", "selection": {"since": since}}
        assert (await orchestrator.request("POST", PLAN, json=body)).status == status
    unknown = {"selection": {"pipeline": "unknown"}, "requested_pipeline": "nlp"}
    problem(await orchestrator.request("POST", PLAN, json=unknown), 404, "unknown-pipeline")


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
        prefix = process.environment["BCS_REDIS_KEY_PREFIX"]
        index = RedisBatchIndex(
            gateway, key_prefix=prefix, ttl_seconds=600, max_batches=10_000, now_us=lambda: time_ns() // 1000
        )
        store = RedisStateStore(
            gateway,
            law=load_pipelines(None).law(require_registration=False),
            key_prefix=prefix,
            ttl_seconds=600,
            changed=index.note,
        )
        everything = [*names, *(f"more-{number}" for number in range(100))]
        for number, name in enumerate(everything):
            await store.commit(name, delta_of(facts(number % 31)))
        await index.flush()
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

            async def selecting() -> None:
                planned, last = await select(caller, limit=1_000)
                assert len(planned) == last["selection"]["scanned"] == 1_000
                assert last["selection"]["next_cursor"] is not None

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
                    ("warm selection", selecting),
                )
            }
        ran = await bcs("plan", "--pipeline", "nlp", "--all", "--json", "--url", process.base)
        assert sorted(one["batch_id"] for one in ran.json["batches"]) == sorted(everything)
        assert ran.json["totals"]["batches"] == len(everything)
        for warmth in ("cold", "warm"):
            assert costs[f"{warmth} plan"][0] < 1.0, costs
        for name, questions in (("cold plan", "cold"), ("warm plan", "warm"), ("warm selection", "warm")):
            # Another process that uses this machine makes a plan later, and costs it nothing.
            cpu_seconds = costs[name][1]
            assert cpu_seconds < 1.0, costs
            assert cpu_seconds <= costs[f"{questions} questions"][1] / 2, costs


class SlowRedis:
    """A service whose Redis is slow from now on, so that a plan takes a while, and a caller that reads the plan."""

    def __init__(self, proxy: FaultProxy, service: RunningService, caller: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.service = service
        self.caller = caller

    @asynccontextmanager
    async def planning(self, **fields: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """A plan of which the first lines have come."""
        self.proxy.delay(0.02)
        async with self.caller.post(PLAN, json={"requested_pipeline": "nlp", **fields}) as response:
            assert response.status == 200
            await response.content.readline()
            yield response

    async def made_known(self, count: int) -> list[str]:
        names = [f"batch-{number}" for number in range(count)]
        async with anyio.create_task_group() as group:
            for some in (names[start::8] for start in range(8)):
                group.start_soon(anyio.to_thread.run_sync, self._commit, some)
        await anyio.to_thread.run_sync(write_index, self.service)
        return names

    def _commit(self, names: list[str]) -> None:
        for name in names:
            self.service.run(self.service.service.store.commit, name, delta_of(facts()[:1]))


@pytest.fixture
async def slow_redis(redis_url: str) -> AsyncIterator[SlowRedis]:
    host, port = redis_url.removeprefix("redis://").partition("/")[0].split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        running_service(
            redis_url=f"redis://{proxy.address}", kafka_bootstrap_servers="127.0.0.1:1", redis_deadline_seconds=0.5
        ) as service,
        aiohttp.ClientSession(service.base) as caller,
    ):
        yield SlowRedis(proxy, service, caller)
        proxy.delay(0)


@pytest.mark.release
async def test_the_first_lines_come_while_the_others_are_not_made(slow_redis: SlowRedis) -> None:
    began = anyio.current_time()
    async with slow_redis.planning(batch_ids=[f"unknown-{number}" for number in range(1_000)]) as response:
        first = anyio.current_time() - began
        body = (await response.read()).splitlines()
        assert len(body) == 1_000
        assert json.loads(body[-1])["totals"]["batches"] == 1_000
        assert first < (anyio.current_time() - began) / 3


@pytest.mark.release
async def test_a_store_that_goes_away_meanwhile_ends_a_selection_where_it_can_go_on(slow_redis: SlowRedis) -> None:
    names = await slow_redis.made_known(300)
    async with slow_redis.planning(selection={}) as response:
        slow_redis.proxy.refuse()
        await slow_redis.proxy.cut()
        *planned, last = [json.loads(line) for line in (await response.read()).splitlines()]
    assert last["problem"]["type"] == "urn:bcs:problem:unavailable"
    assert "totals" not in last
    slow_redis.proxy.delay(0)
    slow_redis.proxy.accept()
    seen = {one["batch_id"] for one in planned if "problem" not in one}
    cursor = last["selection"]["next_cursor"]

    async def gone_on() -> bool:
        body = {"requested_pipeline": "nlp", "selection": {"cursor": cursor} if cursor else {}}
        async with slow_redis.caller.post(PLAN, json=body) as response:
            *more, end = [json.loads(line) for line in (await response.read()).splitlines()]
            seen.update(one["batch_id"] for one in more if "problem" not in one)
            return "totals" in end

    await wait_until(gone_on)
    # The first line was read before; those that had no answer have a line that says so.
    failed = {one["batch_id"] for one in planned if "problem" in one}
    assert len(set(names) - seen - failed) <= 1


@pytest.mark.release
async def test_a_stop_meanwhile_ends_a_plan_with_a_line_that_says_so(slow_redis: SlowRedis) -> None:
    async with slow_redis.planning(batch_ids=[f"unknown-{number}" for number in range(1_000)]) as response:
        stop = slow_redis.service.service._stop
        assert stop
        slow_redis.service.call(stop.set)
        *planned, last = [json.loads(line) for line in (await response.read()).splitlines()]
    assert len(planned) < 999
    assert last["problem"]["type"] == "urn:bcs:problem:draining"


@pytest.mark.release
async def test_a_caller_that_leaves_meanwhile_ends_the_plan(slow_redis: SlowRedis) -> None:
    async with slow_redis.planning(batch_ids=[f"unknown-{number}" for number in range(1_000)]) as response:
        response.close()
    slow_redis.proxy.delay(0)
    async with Orchestrator(slow_redis.service.base) as orchestrator:

        async def counted() -> bool:
            labels = {"method": "POST", "endpoint": PLAN, "status_code": "499"}
            return await orchestrator.metric("bcs_http_requests_total", **labels) == 1

        await wait_until(counted)


@pytest.mark.release
async def test_the_command_plans_what_the_service_finds(
    service: RunningService, orchestrator: Orchestrator, batches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = await bcs("plan", "--pipeline", "nlp", "--all", "--json", "--url", service.base)
    assert ran.exit_code == 0
    found = {one["batch_id"] for one in ran.json["batches"]}
    assert found >= set(batches)
    assert len(found) == len(ran.json["batches"]) == ran.json["totals"]["batches"]
    paged = await bcs("plan", "--pipeline", "nlp", "--changed-since", "1d", "--json", "--url", service.base)
    assert {one["batch_id"] for one in paged.json["batches"]} == found
    ran = await bcs("plan", "--pipeline", "nlp", "--state", "complete", "--json", "--url", service.base)
    assert batches[1] in {one["batch_id"] for one in ran.json["batches"]}
    assert not ran.json["totals"]["phases"]["nlp"]["runs"]
    ran = await bcs("plan", "--pipeline", "nlp", "--phase", "unknown", "--url", service.base)
    assert (ran.exit_code, "selection.phase: must be one of" in ran.error) == (1, True)
    assert (await bcs("plan", "-", "--pipeline", "nlp", "--all", "--url", service.base, given="b")).exit_code == 2


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
