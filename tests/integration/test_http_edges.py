"""Edge cases of HTTP: ids that can't be headers, refusals without secrets, and their metrics."""

from __future__ import annotations

import re

import pytest

from tests.support.service import COMPLETE, DEFINE, Orchestrator, running_service

pytestmark = pytest.mark.anyio

GOOD = {"batch_id": "batch", "requested_pipeline": "ai_feedback", "correlation_id": "550e8400-e29b"}


@pytest.fixture(scope="module")
def service_settings() -> dict[str, object]:
    return {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1"}


@pytest.mark.parametrize("strange", ["\n", "\r\nX: y", "\x00", "\x7f", "🦉"])
@pytest.mark.parametrize("around", ["{}", "a{}b"])
async def test_any_correlation_id_gets_an_answer_with_a_well_formed_header(
    orchestrator: Orchestrator, strange: str, around: str
) -> None:
    correlation_id = around.format(strange)
    answer = await orchestrator.request("POST", DEFINE, json={**GOOD, "correlation_id": correlation_id})
    assert answer.status == 200, answer.body
    assert re.fullmatch(r"[!-~]([ -~]*[!-~])?", answer.headers["X-Correlation-ID"])
    assert "X" not in answer.headers
    refused = await orchestrator.request(
        "POST", DEFINE, json={**GOOD, "correlation_id": correlation_id, "batch_id": ""}
    )
    assert refused.status == 400
    assert re.fullmatch(r"[!-~]([ -~]*[!-~])?", refused.headers["X-Correlation-ID"])


@pytest.mark.parametrize("changes", [{"batch_id": ""}, {"requested_pipeline": 7}, {"batch_metadata": "none"}])
async def test_an_invalid_body_is_answered_under_its_own_correlation_id(
    orchestrator: Orchestrator, changes: dict[str, object]
) -> None:
    answer = await orchestrator.request("POST", DEFINE, json={**GOOD, **changes})
    assert answer.status == 400
    assert answer.json["correlation_id"] == GOOD["correlation_id"]
    assert answer.headers["X-Correlation-ID"] == GOOD["correlation_id"]


async def test_what_is_refused_for_an_outage_names_no_address(free_port: int) -> None:
    async with (
        running_service(
            redis_url=f"redis://localhost:{free_port}",
            redis_deadline_seconds=0.4,
            kafka_bootstrap_servers="127.0.0.1:1",
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        for _ in range(6):  # more than the circuit breaker takes
            for answer in (
                await orchestrator.define("batch"),
                await orchestrator.complete("batch", "nlp"),
                await orchestrator.get("/readyz"),
            ):
                assert answer.status == 503
                assert not re.search(rf"{free_port}|localhost|127\.0\.0\.1|::1", answer.body.decode())


async def test_a_pruning_for_which_the_outbox_has_no_room_is_not_answered(batch: str) -> None:
    async with (
        running_service(
            use_mock_repository=True, outbox_max_messages=1, kafka_bootstrap_servers="127.0.0.1:1"
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        answer = await orchestrator.define(batch)
        assert answer.status == 503
        assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    ("method", "path"), [("GET", DEFINE), ("DELETE", COMPLETE), ("POST", "/healthz"), ("PUT", "/metrics")]
)
async def test_a_wrong_method_is_counted_under_the_route(orchestrator: Orchestrator, method: str, path: str) -> None:
    labels = {"method": method, "endpoint": path, "status_code": "405"}
    before = await orchestrator.metric("bcs_http_requests_total", **labels) or 0
    assert (await orchestrator.request(method, path)).status == 405
    assert await orchestrator.metric("bcs_http_requests_total", **labels) == before + 1
