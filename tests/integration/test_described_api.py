"""The whole HTTP API against its description, with a PostgreSQL, and with actors that are killed meanwhile."""

import json
import os
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import anyio
import pytest

from bcs.config.pipelines import load_pipelines
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.http.identity import Scope
from tests.support.described_api import UNTRIED, Budget, Names, Tried, try_all
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until
from tests.surface.http_calls import routers_seen

# `http` is not killed here: the connections on which the next requests come end with it. See test_http_kill.py.
KILLED = ["metrics", "publisher", "archive", "batches", "intake"]
BATCH = "batch_12345"  # the example of the document
ESSAYS = [f"essay-{number}" for number in range(3)]
DEFINITIONS = load_pipelines(None)
NAMES = Names(
    phases=sorted({*DEFINITIONS.phases, *PLATFORM_PHASES}),
    pipelines=sorted(DEFINITIONS.names),
    actors=[*KILLED, "nobody"],
    batches=[BATCH],
    essays=ESSAYS,
)


@pytest.fixture(scope="module")
def routes() -> set[tuple[str, str]]:
    """The method and path of each route of `service`; filled by it."""
    return set()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("a-token-with-all-scopes", id="with tokens"),
        # Nothing is answered here that a caller with all scopes does not get, too.
        pytest.param(None, id="for everybody", marks=pytest.mark.release),
    ],
)
def token(request: pytest.FixtureRequest) -> str | None:
    """The token that the service asks for; None if it asks for none."""
    return cast("str | None", request.param)


@pytest.fixture(scope="module")
def service(
    redis_url: str,
    module_kafka: str,
    module_database_url: str,
    routes: set[tuple[str, str]],
    token: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningService]:
    """A service with an archive, on which actors may be killed without number, and which knows a batch."""
    tokens = tmp_path_factory.mktemp("callers") / "callers.json"
    tokens.write_text(json.dumps({"callers": [{"name": "everything", "scopes": [*Scope], "tokens": [token]}]}))
    with (
        routers_seen() as routers,
        service_in_thread(
            redis_url=redis_url,
            kafka_bootstrap_servers=module_kafka,
            database_url=module_database_url,
            chaos_enabled=True,
            erased_batches_seconds=1,
            restart_max=1_000_000,
            restart_backoff_maximum_seconds=0.05,
            http_tokens_file=tokens if token else None,
        ) as running,
    ):
        [router] = routers
        routes |= {(route.method, route.resource.canonical) for route in router.routes() if route.resource}
        anyio.run(_make_known, running, module_kafka, token)
        yield running


async def _make_known(service: RunningService, kafka: str, token: str | None) -> None:
    async with Platform(kafka) as platform, Orchestrator(service.base, token=token) as caller:
        if (await caller.get(f"/internal/v1/batches/{BATCH}")).status == HTTPStatus.OK:
            return  # from the archive, where the service before left it

        async def acceptable() -> bool:
            """Not erased any more, as in the test before."""
            return (await caller.get(f"/internal/v1/batches/{BATCH}")).status != HTTPStatus.GONE

        await wait_until(acceptable)
        await platform.send(
            registered(BATCH, ESSAYS, 4), spellchecked(BATCH, ESSAYS[0]), spellchecked(BATCH, ESSAYS[1], "failed")
        )

        async def known() -> bool:
            batch = (await caller.get(f"/internal/v1/batches/{BATCH}")).json
            return [phase["completed"] + phase["failed"] for phase in batch.get("phases", [])][:1] == [2]

        await wait_until(known)
        assert (await caller.complete(BATCH, "nlp")).status == 200


@pytest.fixture(scope="module")
def document(service: RunningService, token: str | None) -> dict[str, Any]:
    """The description of the service."""

    async def ask() -> bytes:
        async with Orchestrator(service.base, token=token) as caller:

            async def served() -> bytes:
                answer = await caller.get("/openapi.json")
                return answer.body if answer.status == HTTPStatus.OK else b""

            # To make the first one takes a second of CPU: on a machine that has much to do, more than a request may.
            return await wait_until(served)

    served: dict[str, Any] = json.loads(anyio.run(ask))
    return served


def assert_tried(document: dict[str, Any], tried: Tried, *, token: str | None) -> None:
    """Nothing failed, and every call was tried and answered, in every phase."""
    assert not tried.problems, "\n\n".join(tried.problems)
    answered = {label for label, status, _ in tried.answers if status < 300}
    assert answered == {f"{method} {path}" for method, path in calls(document) if path not in UNTRIED}
    refused = {label for label, status, _ in tried.answers if status == HTTPStatus.UNAUTHORIZED}
    assert bool(refused) == bool(token)
    assert tried.phases.keys() == {"examples", "coverage", "fuzzing", "stateful"}


def calls(document: dict[str, Any]) -> set[tuple[str, str]]:
    """The method and path of each call in the description."""
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def test_the_document_has_each_route_and_no_other(document: dict[str, Any], routes: set[tuple[str, str]]) -> None:
    described = calls(document)
    # The document says of all GETs that HEAD is taken, too.
    heads = {("HEAD", path) for method, path in described if method == "GET"}
    assert routes == described | heads | {("*", "/{path}")}


def test_all_calls_are_answered_as_the_document_says(
    service: RunningService, document: dict[str, Any], token: str | None
) -> None:
    tried = try_all(service.base, document, NAMES, Budget(examples=1, stories=1), token=token)
    assert_tried(document, tried, token=token)


@pytest.mark.release
def test_many_more_calls_are_answered_as_the_document_says(
    service: RunningService, document: dict[str, Any], token: str | None
) -> None:
    seed = int(os.environ.get("BCS_TEST_CHAOS_SEED", "1"))
    tried = try_all(service.base, document, NAMES, Budget(examples=500, stories=200, seed=seed), token=token)
    assert_tried(document, tried, token=token)
