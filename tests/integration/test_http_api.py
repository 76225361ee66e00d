"""The HTTP interface, with the state in memory and in a real store."""

import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest

from bcs import __version__
from bcs.http.problems import KINDS
from bcs.http.requests import DEAD_LETTER_WRITTEN
from bcs.wire import topics
from bcs.wire.dead_letters.encode import RESOLUTION_FAILED
from tests.support.service import COMPLETE, DEFINE, Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
PRIVATE = "Elsas-private-text"  # what a caller sends must never come back in an error
GOOD = {"batch_id": "batch", "requested_pipeline": "ai_feedback", "correlation_id": CORRELATION_ID}
MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["memory", "valkey"])
def service_settings(request: pytest.FixtureRequest) -> dict[str, object]:
    if request.param == "memory":
        return {"use_mock_repository": True, "redis_url": "redis://127.0.0.1:1"}
    return {}


def problem(answer: Answer, status: int) -> dict[str, Any]:
    """The problem document (RFC 9457) that the answer must be."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json
    assert document["status"] == status
    for member in ("type", "title", "detail", "correlation_id"):
        assert isinstance(document[member], str)
        assert document[member], member
    assert document["correlation_id"] == answer.headers["X-Correlation-ID"]
    assert document["title"] == KINDS[document["type"].removeprefix("urn:bcs:problem:")].title
    assert PRIVATE not in answer.body.decode()
    return document


async def test_a_resolution_names_what_is_to_run_and_says_why(orchestrator: Orchestrator, batch: str) -> None:
    answer = await orchestrator.request("POST", DEFINE, json={**GOOD, "batch_id": batch, "unknown": {"field": PRIVATE}})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["X-Correlation-ID"] == CORRELATION_ID
    document = answer.json
    assert document["batch_id"] == batch
    assert document["final_pipeline"] == ["spellcheck", "ai_feedback"]
    assert document["pruned_phases"] == []
    assert "spellcheck" in document["analysis_summary"]


@pytest.mark.parametrize(
    ("pipeline", "phases"),
    [
        ("spellcheck", ["spellcheck"]),
        ("nlp", ["spellcheck", "nlp"]),
        ("cj_assessment", ["spellcheck", "cj_assessment"]),
        ("comprehensive", ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]),
    ],
)
async def test_every_shipped_pipeline_resolves(
    orchestrator: Orchestrator, batch: str, pipeline: str, phases: list[str]
) -> None:
    assert await orchestrator.to_run(batch, pipeline) == phases


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"batch_id": "\xff"}', b'{"batch_id": "a",}'])
async def test_malformed_json_is_refused(orchestrator: Orchestrator, body: bytes) -> None:
    answer = await orchestrator.request("POST", DEFINE, data=body, headers={"Content-Type": "application/json"})
    document = problem(answer, 400)
    assert [error["field"] for error in document["errors"]] == ["body"]


@pytest.mark.parametrize("body", [[GOOD], "text", 1, None, True])
async def test_json_that_is_no_object_is_refused(orchestrator: Orchestrator, body: object) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await orchestrator.request("POST", DEFINE, data=json.dumps(body), headers=headers)
    assert [error["field"] for error in problem(answer, 400)["errors"]] == ["body"]


@pytest.mark.parametrize(
    ("path", "changes", "fields"),
    [
        (DEFINE, {"batch_id": ""}, {"batch_id"}),
        (DEFINE, {"batch_id": None}, {"batch_id"}),
        (DEFINE, {"batch_id": " "}, {"batch_id"}),
        (DEFINE, {"batch_id": f"{PRIVATE} "}, {"batch_id"}),
        (DEFINE, {"batch_id": f"\t{PRIVATE}"}, {"batch_id"}),
        (COMPLETE, {"batch_id": " ", "phase_name": "spellcheck", "success": True}, {"batch_id"}),
        (DEFINE, {"batch_id": 12345}, {"batch_id"}),
        (DEFINE, {"batch_id": "x" * 256}, {"batch_id"}),
        (DEFINE, {"batch_id": [PRIVATE]}, {"batch_id"}),
        (DEFINE, {"requested_pipeline": ""}, {"requested_pipeline"}),
        (DEFINE, {"requested_pipeline": {PRIVATE: PRIVATE}}, {"requested_pipeline"}),
        (DEFINE, {"correlation_id": ""}, {"correlation_id"}),
        (DEFINE, {"correlation_id": "x" * 101}, {"correlation_id"}),
        (DEFINE, {"batch_metadata": PRIVATE}, {"batch_metadata"}),
        (DEFINE, {"batch_metadata": {"prompt_attached": "no"}}, {"batch_metadata.prompt_attached"}),
        (
            DEFINE,
            {"batch_id": None, "requested_pipeline": [PRIVATE], "correlation_id": 7},
            {"batch_id", "requested_pipeline", "correlation_id"},
        ),
        (COMPLETE, {"batch_id": ""}, {"batch_id", "phase_name", "success"}),
        (COMPLETE, {"phase_name": "spellcheck", "success": "yes"}, {"success"}),
        (COMPLETE, {"phase_name": PRIVATE, "success": True}, {"phase_name"}),
        (COMPLETE, {"phase_name": "comprehensive", "success": True}, {"phase_name"}),
    ],
)
async def test_each_invalid_field_is_named(
    orchestrator: Orchestrator, path: str, changes: dict[str, object], fields: set[str]
) -> None:
    document = problem(await orchestrator.request("POST", path, json={**GOOD, **changes}), 400)
    assert {error["field"] for error in document["errors"]} == fields
    assert all(field in document["detail"] for field in fields)


@pytest.mark.parametrize("field", list(GOOD))
async def test_a_missing_field_is_named(orchestrator: Orchestrator, field: str) -> None:
    body = {name: value for name, value in GOOD.items() if name != field}
    document = problem(await orchestrator.request("POST", DEFINE, json=body), 400)
    assert [error["field"] for error in document["errors"]] == [field]


async def test_an_unknown_pipeline_is_not_found_and_the_known_ones_are_named(
    orchestrator: Orchestrator, batch: str
) -> None:
    document = problem(await orchestrator.define(batch, PRIVATE, correlation_id=CORRELATION_ID), 404)
    assert document["correlation_id"] == CORRELATION_ID
    assert "comprehensive" in document["detail"]


async def test_what_is_refused_makes_no_dead_letter(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    written = await orchestrator.metric("bcs_dead_letters_total", topic=topics.RESOLUTION, reason=RESOLUTION_FAILED)
    answer = await orchestrator.define(batch, PRIVATE)
    assert answer.status == 404
    assert DEAD_LETTER_WRITTEN not in answer.headers
    after = await orchestrator.metric("bcs_dead_letters_total", topic=topics.RESOLUTION, reason=RESOLUTION_FAILED)
    assert after == written is not None


async def test_student_matching_is_reported_but_is_no_pipeline(orchestrator: Orchestrator, batch: str) -> None:
    assert (await orchestrator.complete(batch, "student_matching")).status == 200
    problem(await orchestrator.define(batch, "student_matching"), 404)


@pytest.mark.parametrize(
    "path", ["/", "/internal/v1/pipelines/", f"/{PRIVATE}", "/internal/v1/pipelines/define/", "/%00"]
)
async def test_an_unknown_path_is_not_found(orchestrator: Orchestrator, path: str) -> None:
    problem(await orchestrator.get(path), 404)


@pytest.mark.parametrize(("method", "path"), [("GET", DEFINE), ("DELETE", COMPLETE), ("POST", "/healthz")])
async def test_a_wrong_method_is_told_the_right_one(orchestrator: Orchestrator, method: str, path: str) -> None:
    answer = await orchestrator.request(method, path)
    document = problem(answer, 405)
    expected = "GET" if path == "/healthz" else "POST"
    assert expected in answer.headers["Allow"]
    assert method not in answer.headers["Allow"]
    assert expected in document["detail"]


async def test_a_body_beyond_one_mebibyte_is_too_large(orchestrator: Orchestrator, batch: str) -> None:
    body = json.dumps({**GOOD, "batch_id": batch, "padding": ""})
    fitting = body.replace('"padding": ""', f'"padding": "{"x" * (MIB - len(body))}"').encode()
    assert len(fitting) == MIB
    headers = {"Content-Type": "application/json"}
    assert (await orchestrator.request("POST", DEFINE, data=BytesIO(fitting), headers=headers)).status == 200
    problem(await orchestrator.request("POST", DEFINE, data=BytesIO(fitting + b" "), headers=headers), 413)

    async def chunks() -> AsyncIterator[bytes]:  # sent without a Content-Length
        yield fitting
        yield b" "

    problem(await orchestrator.request("POST", DEFINE, data=chunks(), headers=headers), 413)


async def test_a_limit_for_bodies_below_a_packet_holds_too(batch: str) -> None:
    body = {**GOOD, "batch_id": batch}
    limit = len(json.dumps(body)) + 10
    async with (
        running_service(
            use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1", http_max_body_bytes=limit
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.request("POST", DEFINE, json=body)).status == 200
        problem(await orchestrator.request("POST", DEFINE, json={**body, "padding": "x" * 20}), 413)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
async def test_only_json_is_read(orchestrator: Orchestrator, content_type: str) -> None:
    body, headers = json.dumps(GOOD).encode(), {"Content-Type": content_type}
    problem(await orchestrator.request("POST", DEFINE, data=body, headers=headers), 415)


async def test_json_with_a_charset_is_read(orchestrator: Orchestrator) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await orchestrator.request("POST", DEFINE, data=json.dumps(GOOD).encode(), headers=headers)).status == 200


@pytest.mark.parametrize("pipeline", ["cj_assessment", "ai_feedback", "nlp", "comprehensive"])
async def test_without_a_prompt_what_needs_one_is_refused_and_counted(
    orchestrator: Orchestrator, batch: str, pipeline: str
) -> None:
    refusals = ("bcs_pipeline_refusals_total", {"reason": "prompt_required"})
    before = await orchestrator.metric(refusals[0], **refusals[1]) or 0
    answer = await orchestrator.define(
        batch, pipeline, batch_metadata={"prompt_attached": False, "prompt_source": PRIVATE}
    )
    document = problem(answer, 409)
    assert "prompt" in document["detail"]
    assert (pipeline if pipeline != "comprehensive" else "cj_assessment") in document["detail"]
    assert await orchestrator.metric(refusals[0], **refusals[1]) == before + 1
    for metadata in ({"prompt_attached": True, "assignment_id": "a"}, {"prompt_source": "context"}, {}, None):
        assert (await orchestrator.define(batch, pipeline, batch_metadata=metadata)).status == 200
    assert (await orchestrator.define(batch, pipeline)).status == 200


async def test_spellcheck_needs_no_prompt(orchestrator: Orchestrator, batch: str) -> None:
    assert await orchestrator.to_run(batch, "spellcheck", batch_metadata={"prompt_attached": False}) == ["spellcheck"]


async def test_a_phase_is_reported_complete_and_then_failed(orchestrator: Orchestrator, batch: str) -> None:
    answer = await orchestrator.complete(batch, "spellcheck")
    assert answer.status == 200
    assert answer.json == {"status": "recorded", "batch_id": batch, "phase_name": "spellcheck"}
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    assert (await orchestrator.complete(batch, "spellcheck", success=False)).status == 200
    assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_the_state_of_a_batch_is_told_with_where_it_was_read(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    for phase, success in (("spellcheck", True), ("student_matching", True), ("nlp", False)):
        await orchestrator.complete(batch, phase, success)
    answer = await orchestrator.get(f"/internal/v1/batches/{batch}")
    assert answer.status == 200
    document = answer.json
    assert (document["batch_id"], type(document["version"])) == (batch, int)
    assert document["source"] == ("memory" if service.service.settings.use_mock_repository else "redis")
    assert (document["expected"], document["known_essays"]) == (None, [])
    phases = {phase["phase"]: phase for phase in document["phases"]}
    assert list(phases) == ["spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"]
    assert {name for name, phase in phases.items() if phase["complete"]} == {"spellcheck", "student_matching"}
    assert phases["nlp"]["report"] == {"outcome": "failed", "at": phases["nlp"]["newest_mark_at"]}


async def test_a_refusal_is_logged_with_its_caller_and_a_failed_read_is_not(
    orchestrator: Orchestrator, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bcs.http")
    assert (await orchestrator.get(f"/internal/v1/batches/{batch}")).status == 404
    assert (await orchestrator.define(batch, "nonsense", correlation_id="the-refused")).status == 404
    await orchestrator.request("POST", COMPLETE, json={"batch_id": batch}, headers={"User-Agent": "a-test"})
    first, second = (vars(record) for record in caplog.records if record.name == "bcs.http")
    assert [first[name] for name in ("msg", "method", "route", "status", "kind", "batch_id", "correlation_id")] == [
        "request_refused", "POST", DEFINE, 404, "unknown-pipeline", batch, "the-refused"
    ]  # fmt: skip
    assert (second["route"], second["status"], second["batch_id"]) == (COMPLETE, 400, batch)
    assert second["requested_by"].startswith("a-test at ")


async def test_of_an_unknown_batch_nothing_is_told(orchestrator: Orchestrator, batch: str) -> None:
    document = problem(await orchestrator.get(f"/internal/v1/batches/{PRIVATE}{batch}"), 404)
    assert document["type"] == "urn:bcs:problem:unknown-batch"


async def test_without_a_record_there_is_no_history(orchestrator: Orchestrator, batch: str) -> None:
    await orchestrator.complete(batch, "spellcheck")
    document = problem(await orchestrator.get(f"/internal/v1/batches/{batch}/history"), 404)
    assert document["type"] == "urn:bcs:problem:no-archive"
    assert "BCS_DATABASE_URL" in document["detail"]


async def test_health_says_how_everything_is(service: RunningService, orchestrator: Orchestrator) -> None:
    async def healthy() -> dict[str, Any] | None:
        answer = await orchestrator.get("/healthz")
        assert answer.status == 200
        document: dict[str, Any] = answer.json
        return document if document["status"] == "healthy" else None

    document = await wait_until(healthy)
    assert document["service"] == "batch_conductor_service"
    assert document["version"] == __version__
    assert document["environment"] == "testing"
    assert document["message"]
    assert isinstance(document["checks"], dict)
    assert set(document["dependencies"]) == {"redis", "kafka", "postgresql"}
    assert all(dependency["message"] for dependency in document["dependencies"].values())
    assert document["dependencies"]["kafka"]["status"] == "healthy"
    in_memory = service.service.settings.use_mock_repository
    assert document["dependencies"]["redis"]["status"] == ("not_configured" if in_memory else "healthy")
    assert (await orchestrator.get("/readyz")).status == 200


@pytest.mark.parametrize("correlation_id", [" ", "  two blanks before, one after ", "ü", "100 %", "\x7f"])
async def test_a_correlation_id_survives_in_the_header(
    orchestrator: Orchestrator, batch: str, correlation_id: str
) -> None:
    answer = await orchestrator.define(batch, correlation_id=correlation_id)
    assert unquote(answer.headers["X-Correlation-ID"]) == correlation_id


async def test_answers_carry_a_correlation_id_even_where_the_request_has_none(orchestrator: Orchestrator) -> None:
    first, second = (await orchestrator.get("/healthz")).headers, (await orchestrator.get("/nothing")).headers
    assert UUID(first["X-Correlation-ID"]) != UUID(second["X-Correlation-ID"])


async def test_metrics_have_the_promised_names_and_bounded_labels(orchestrator: Orchestrator, batch: str) -> None:
    await orchestrator.complete(batch, "spellcheck")
    await orchestrator.define(batch)
    await orchestrator.define(f"{PRIVATE}-{batch}", PRIVATE)
    await orchestrator.request(PRIVATE.upper(), DEFINE)
    await orchestrator.request("PURGE", f"/{PRIVATE}")
    await orchestrator.get(f"/{PRIVATE}/{batch}?{PRIVATE}={batch}")
    await orchestrator.request("POST", DEFINE, json={**GOOD, "batch_id": ""})
    await orchestrator.get(f"/internal/v1/batches/{PRIVATE}-{batch}")
    samples = await orchestrator.samples()
    names = {name for name, _, _ in samples}
    assert names >= {
        "bcs_pipeline_resolutions_total",
        "bcs_http_requests_total",
        "bcs_http_request_duration_seconds_bucket",
        "bcs_phases_pruned_total",
        "bcs_mailbox_depth",
        "bcs_redis_commit_conflicts_total",
        "bcs_redis_commit_fallbacks_total",
        "bcs_outbox_backlog",
        "bcs_circuit_breaker_state",
    }
    resolved = {labels["status"] for name, labels, _ in samples if name == "bcs_pipeline_resolutions_total"}
    assert resolved == {"success", "failure"}
    label_values = {value for name, labels, _ in samples if name.startswith("bcs_") for value in labels.values()}
    assert not [value for value in label_values if PRIVATE.lower()[:4] in value.lower() or batch in value]
    requests = [labels for name, labels, _ in samples if name == "bcs_http_requests_total"]
    assert {labels["endpoint"] for labels in requests} <= {
        DEFINE,
        COMPLETE,
        "/internal/v1/batches/{id}",
        "/internal/v1/batches/{id}/history",
        "/healthz",
        "/readyz",
        "/metrics",
        "unmatched",
    }
    assert {"method": "other", "endpoint": "unmatched", "status_code": "404"} in requests
    assert "PURGE" not in label_values


async def test_requests_are_counted_by_route_and_status(orchestrator: Orchestrator, batch: str) -> None:
    labels = {"method": "POST", "endpoint": DEFINE, "status_code": "200"}
    before = await orchestrator.metric("bcs_http_requests_total", **labels) or 0
    resolved = await orchestrator.metric("bcs_pipeline_resolutions_total", status="success") or 0
    for _ in range(3):
        await orchestrator.to_run(batch)
    assert await orchestrator.metric("bcs_http_requests_total", **labels) == before + 3
    assert await orchestrator.metric("bcs_pipeline_resolutions_total", status="success") == resolved + 3
