"""Dead letters over HTTP: the newest ones, with their reason, and replays, with the code of `bcs dlq`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bcs.http.identity import Scope
from bcs.wire import topics
from tests.support.callers import TOKENS, callers
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LIST = "/internal/v1/dead-letters"
OPERATOR = "a-token-of-an-operator"
SOURCE = topics.SPELLCHECK_COMPLETED


@pytest.fixture(scope="module")
def kafka_bootstrap_servers(module_kafka: str) -> str:
    return module_kafka


@pytest.fixture(scope="module")
def service(redis_url: str, module_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    file = tmp_path_factory.mktemp("callers") / "callers.json"
    file.write_text(callers({"name": "operator", "scopes": ["read", "operate"], "tokens": [OPERATOR]}))
    with service_in_thread(redis_url=redis_url, kafka_bootstrap_servers=module_kafka, http_tokens_file=file) as running:
        yield running


async def listed(caller: Orchestrator, query: str = "") -> list[dict[str, Any]]:
    found = await caller.get(f"{LIST}?{query}")
    assert found.status == 200, found.body
    letters: list[dict[str, Any]] = found.json["dead_letters"]
    return letters


@pytest.mark.release
async def test_what_could_not_be_processed_is_listed_and_replayed(service: RunningService, platform: Platform) -> None:
    async with Orchestrator(service.base, token=OPERATOR) as operator:
        assert await listed(operator) == []
        for number in range(3):
            await platform.send_raw((SOURCE, f"batch-{number}".encode(), b"not JSON"))
        await wait_until(lambda: three_are_listed(operator))
        newest, *_ = letters = await listed(operator)
        assert {each["reason"] for each in letters} == {"not_json"}
        assert "Invalid JSON" in newest["error"]
        assert (newest["failures"], newest["replayed"], newest["source"].partition("/")[0]) == (1, False, SOURCE)
        assert len(await listed(operator, "limit=2")) == 2
        assert (await operator.get(f"{LIST}?limit=2")).json["older"] is True
        assert await listed(operator, "reason=too_large") == []
        assert len(await listed(operator, f"topic={SOURCE}")) == 3

        nowhere = f"{SOURCE}.DLQ/0/999"
        order = {"dead_letters": [newest["position"], nowhere]}
        replayed = await operator.request("POST", f"{LIST}/replay", json=order)
        assert replayed.status == 200, replayed.body
        assert replayed.json["results"] == [
            {"position": newest["position"], "status": "replayed", "problem": None},
            {"position": nowhere, "status": "failed", "problem": "there is no dead letter at this position"},
        ]
        # It fails again, and the count goes on.
        await wait_until(lambda: counted_on(operator))
        assert newest["position"] not in {each["position"] for each in await listed(operator)}
        again = await operator.request("POST", f"{LIST}/replay", json={"dead_letters": [newest["position"]]})
        assert again.json["results"][0]["problem"] == "it was replayed before"
        assert {each["position"] for each in await listed(operator, "state=all")} > {newest["position"]}


async def three_are_listed(operator: Orchestrator) -> bool:
    return len(await listed(operator)) == 3


async def counted_on(operator: Orchestrator) -> bool:
    return 2 in {each["failures"] for each in await listed(operator)}


async def test_a_failed_resolution_is_answered_again(service: RunningService, platform: Platform, batch: str) -> None:
    request = {"batch_id": batch, "requested_pipeline": "nlp", "correlation_id": "c-1"}
    document = {
        "failed_event_envelope": request,
        "dlq_reason": "resolution_failed",
        "timestamp": "2026-05-03T08:00:00Z",
        "service": "batch_conductor_service",
        "additional_metadata": {"batch_id": batch, "source_topic": topics.RESOLUTION},
    }
    letters = topics.dead_letter_topic(topics.RESOLUTION)
    await platform.send_raw((letters, b"key", json.dumps(document).encode()))
    async with Orchestrator(service.base, token=OPERATOR) as operator:
        [waiting] = await listed(operator, f"batch={batch}")
        assert waiting["source"] == "POST /internal/v1/pipelines/define"
        order = {"dead_letters": [waiting["position"]]}
        replayed = await operator.request("POST", f"{LIST}/replay", json=order)
        assert (replayed.json["replayed"], replayed.json["failed"]) == (1, 0), replayed.body
        assert await listed(operator, f"batch={batch}") == []
        again = await operator.request("POST", f"{LIST}/replay", json=order)
        assert again.json["results"][0]["problem"] == "it was replayed before"
        assert (await operator.metric("bcs_pipeline_resolutions_total", status="success")) == 1


async def test_each_needs_its_scope_and_a_valid_request(service: RunningService) -> None:
    replay = {"dead_letters": [f"{SOURCE}.DLQ/0/0"]}
    async with Orchestrator(service.base, token=TOKENS[Scope.READ]) as reader:
        assert (await reader.request("POST", f"{LIST}/replay", json=replay)).status == 403
        assert (await reader.get(f"{LIST}?limit=501")).status == 400
    async with Orchestrator(service.base, token=TOKENS[Scope.OPERATE]) as operator:
        assert (await operator.get(LIST)).status == 403
        for wrong in ([], ["nonsense"], [f"{SOURCE}/0/0"], [f"{SOURCE}.DLQ/0/{n}" for n in range(101)]):
            found = await operator.request("POST", f"{LIST}/replay", json={"dead_letters": wrong})
            assert (found.status, found.json["type"]) == (400, "urn:bcs:problem:invalid-request"), wrong


async def test_while_kafka_is_away_the_answer_is_a_prompt_503() -> None:
    with service_in_thread(
        use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1", request_deadline_seconds=2.0
    ) as running:
        async with Orchestrator(running.base) as caller:
            found = await caller.get(LIST)
            assert (found.status, found.json["type"]) == (503, "urn:bcs:problem:unavailable")
