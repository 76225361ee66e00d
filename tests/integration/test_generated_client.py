"""The orchestrator's client can be generated from the description of the API."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from bcs.http.identity import Scope
from tests.support.openapi_file import FILE
from tests.support.service import RunningService, service_in_thread

pytestmark = pytest.mark.release

GENERATOR = "openapi-python-client==0.29.1"  # it takes no typer as new as ours, so it has an environment of its own
# The lines of a plan are text for the generator, which knows no `application/x-ndjson`.
CONFIG = {"content_type_overrides": {"application/x-ndjson": "text/plain"}}
TOKEN = "a-token-with-all-scopes"  # noqa: S105 (of the test)
ID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture(scope="module")
def client_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The generated package, from a folder that is there only for the test."""
    folder = tmp_path_factory.mktemp("generated")
    environment, config = folder / "environment", folder / "config.json"
    venv.create(environment, with_pip=True)
    installed = subprocess.run(
        [environment / "bin/pip", "install", "-q", GENERATOR], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"{GENERATOR} can't be installed: {installed.stderr[-300:]}")
    config.write_text(json.dumps(CONFIG))
    generated = subprocess.run(
        [
            *(environment / "bin/openapi-python-client", "generate", "--meta", "none", "--fail-on-warning"),
            *("--path", FILE, "--config", config, "--output-path", folder / "bos_client"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert generated.returncode == 0, generated.stdout + generated.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("bos_client")
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def service(
    redis_url: str, module_kafka: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """A service that asks for tokens."""
    tokens = tmp_path_factory.mktemp("callers") / "callers.json"
    tokens.write_text(json.dumps({"callers": [{"name": "orchestrator", "scopes": [*Scope], "tokens": [TOKEN]}]}))
    with service_in_thread(
        redis_url=redis_url,
        kafka_bootstrap_servers=module_kafka,
        database_url=module_database_url,
        http_tokens_file=tokens,
    ) as running:
        yield running


def call(package: ModuleType, module: str, client: Any, *parameters: object, **more: object) -> Any:
    """What a generated function returns."""
    function = importlib.import_module(f"{package.__name__}.api.{module}")
    return function.sync_detailed(*parameters, client=client, **more)


def test_the_generated_client_calls_the_service_and_gets_typed_answers(
    client_package: ModuleType, service: RunningService
) -> None:
    stranger = client_package.Client(base_url=service.base)
    with client_package.AuthenticatedClient(base_url=service.base, token=TOKEN) as client, stranger:
        use(client_package, client, stranger)


def use(client_package: ModuleType, client: Any, stranger: Any) -> None:
    """Make the orchestrator's and an operator's calls."""
    models = importlib.import_module(f"{client_package.__name__}.models")
    asked = {"batch_id": "b-1", "requested_pipeline": "ai_feedback", "correlation_id": ID}

    def define(**fields: object) -> Any:
        body = models.DefinePipeline.from_dict({**asked, **fields})
        return call(client_package, "pipelines.define_pipeline", client, body=body)

    defined = define()
    assert isinstance(defined.parsed, models.ResolvedWithOptions)
    assert defined.parsed.final_pipeline == ["spellcheck", "ai_feedback"]
    assert defined.parsed.decisions[0].reason.value == "essays_outstanding" or defined.parsed.decisions[0].runs

    reported = models.CompletePhase(batch_id="b-1", phase_name="spellcheck", success=True)
    recorded = call(client_package, "phases.complete_phase", client, body=reported)
    assert isinstance(recorded.parsed, models.PhaseRecorded)
    assert define().parsed.pruned_phases == ["spellcheck"]

    explained = call(client_package, "pipelines.explain_pipeline", client, "b-1", "ai_feedback")
    assert explained.parsed.explanation.phases[0].sentence
    plan = models.PlanPipelines(batch_ids=["b-1", "b-2"], requested_pipeline="ai_feedback")
    lines = call(client_package, "pipelines.plan_pipelines", client, body=plan).parsed.splitlines()
    assert [json.loads(line).get("batch_id") for line in lines] == ["b-1", "b-2", None]
    listed = call(client_package, "pipelines.list_pipelines", client)
    assert "ai_feedback" in [each.name for each in listed.parsed.pipelines]
    assert call(client_package, "batches.show_batch", client, "b-1").parsed.batch_id == "b-1"
    history = call(client_package, "batches.show_history", client, "b-1").parsed
    assert {entry.kind for entry in history.entries} >= {"facts", "resolution"}
    found = call(client_package, "batches.find_batches", client)
    assert isinstance(found.parsed, models.Batches)
    assert call(client_package, "actors.show_actors", client).parsed.children
    assert call(client_package, "health.healthz", client).parsed.service == "batch_conductor_service"

    for answer, status, kind in (
        (define(requested_pipeline="nobody"), 404, "unknown-pipeline"),
        (define(batch_metadata={"prompt_attached": False}), 409, "prompt-required"),
        (define(batch_id=""), 400, "invalid-request"),
        (call(client_package, "batches.show_batch", client, "nobody"), 404, "unknown-batch"),
    ):
        assert isinstance(answer.parsed, models.Problem)
        assert (answer.status_code, answer.parsed.type_) == (status, f"urn:bcs:problem:{kind}")
    assert [each.field for each in define(batch_id="").parsed.errors] == ["batch_id"]

    refused = call(client_package, "batches.show_batch", stranger, "b-1")
    assert refused.parsed.type_ == "urn:bcs:problem:unauthenticated"
