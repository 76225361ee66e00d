"""The examples of the description of the API, from a running service: `python -m tests.support.api_examples`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from bcs.config.pipelines import load_pipelines, pipelines_yaml
from bcs.errors import IntakeBehind, InvalidationOutdated, ReportOutdated, TooManyNewBatches
from bcs.http.bodies import unreadable
from bcs.http.identity import Scope
from bcs.http.problems import Kind, Problem, fault, overloaded, problem_of, too_many_requests
from bcs.http.routes.batches import no_archive
from bcs.wire import topics
from tests.support.events import phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until
from tests.surface.scenario import Servers
from tests.surface.servers import embedded_servers

FILE = Path(__file__).parents[2] / "bcs/http/examples.json"
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
BATCH, ERASED = "batch_12345", "batch_12340"
_ALL, _FEW = "a-token-with-all-scopes", "a-token-with-few-scopes"
_V1 = "/internal/v1"
_DEFINE = {"batch_id": BATCH, "requested_pipeline": "ai_feedback", "correlation_id": CORRELATION_ID}
_DRAFT = {"force": ["spellcheck"], "explain": True, "dry_run": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call whose request and answer are an example.

    :param name: the `operationId`.
    :param at: the parameters in the path.
    """

    name: str
    method: str = "GET"
    path: str
    at: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None


_OF_BATCH = {"id": BATCH}
_MOST_CHARACTERS, _EXCERPT_CHARACTERS = 5_000, 100
_EVENTS = 'event: hello\ndata: {"process": "…", "version": "…"}\n\nevent: snapshot\ndata: {…}\n\n'
_GRAPH = Call(name="drawPipeline", path=f"{_V1}/pipelines/{{name}}/graph", at={"name": "ai_feedback"})
CALLS = (
    Call(name="definePipeline", method="POST", path=f"{_V1}/pipelines/define", body=_DEFINE),
    Call(
        name="planPipelines",
        method="POST",
        path=f"{_V1}/pipelines/plan",
        body={"batch_ids": [BATCH, "batch_12346"], "requested_pipeline": "nlp", "force": "requested"},
    ),
    Call(
        name="explainPipeline",
        path=f"{_V1}/batches/{{id}}/explain/{{pipeline}}",
        at={**_OF_BATCH, "pipeline": "ai_feedback"},
        query={"explain": "full", "limit": "2"},
    ),
    Call(name="listPipelines", path=f"{_V1}/pipelines"),
    Call(name="drawPipeline", path=_GRAPH.path, at=_GRAPH.at, query={"format": "mermaid", "batch": BATCH}),
    Call(name="drawPipeline", path=_GRAPH.path, at=_GRAPH.at, query={"format": "dot"}),
    Call(name="drawPipeline", path=_GRAPH.path, at=_GRAPH.at, query={"format": "svg"}),
    Call(name="reloadPipelines", method="POST", path=f"{_V1}/pipelines/reload"),
    Call(
        name="completePhase",
        method="POST",
        path=f"{_V1}/phases/complete",
        body={"batch_id": BATCH, "phase_name": "spellcheck", "success": True},
    ),
    Call(
        name="invalidatePhases",
        method="POST",
        path=f"{_V1}/batches/{{id}}/invalidate",
        at=_OF_BATCH,
        body={"phases": ["spellcheck"], "reason": "the dictionary was wrong, see INC-7", "dry_run": True},
    ),
    Call(name="findBatches", path=f"{_V1}/batches", query={"state": "incomplete", "limit": "5"}),
    Call(name="findHistory", path=f"{_V1}/history", query={"correlation_id": CORRELATION_ID, "limit": "5"}),
    Call(name="showBatch", path=f"{_V1}/batches/{{id}}", at=_OF_BATCH, query={"limit": "2"}),
    Call(name="showHistory", path=f"{_V1}/batches/{{id}}/history", at=_OF_BATCH, query={"limit": "10"}),
    Call(
        name="eraseBatch",
        method="DELETE",
        path=f"{_V1}/batches/{{id}}",
        at=_OF_BATCH,
        query={"reason": "asked for by the school", "dry_run": "true"},
    ),
    Call(name="showActors", path=f"{_V1}/actors"),
    Call(name="killActor", method="POST", path=f"{_V1}/actors/{{name}}/kill", at={"name": "publisher"}),
    Call(name="listDeadLetters", path=f"{_V1}/dead-letters", query={"reason": "not_json", "limit": "5"}),
    Call(
        name="replayDeadLetters",
        method="POST",
        path=f"{_V1}/dead-letters/replay",
        body={"dead_letters": [f"{topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)}/2/0"]},
    ),
    Call(name="showPage", path="/ui"),
    Call(name="showPageFile", path="/ui/{file}", at={"file": "page.js"}),
    Call(name="showPageFile", path="/ui/{file}", at={"file": "page.css"}),
    Call(name="showPageFile", path="/ui/{file}", at={"file": "icon.svg"}),
    Call(name="showDocs", path="/docs"),
    Call(name="showDocsFile", path="/docs/{file}", at={"file": "docs.js"}),
    Call(name="showDocsFile", path="/docs/{file}", at={"file": "docs.css"}),
    Call(name="healthz", path="/healthz"),
    Call(name="readyz", path="/readyz"),
    Call(name="metrics", path="/metrics"),
)
"""In the order in which they are made."""


def play() -> dict[str, Any]:
    """Make all calls, with servers of their own.

    :returns: the examples, with the same times and ids in each run.
    """
    with embedded_servers() as servers, tempfile.TemporaryDirectory() as directory:
        return steady(anyio.run(_play, servers, Path(directory)))


async def _play(servers: Servers, directory: Path) -> dict[str, Any]:
    callers, pipelines = directory / "callers.json", directory / "pipelines.yaml"
    callers.write_text(
        json.dumps(
            {
                "callers": [
                    {"name": "operator", "scopes": [*Scope], "tokens": [_ALL]},
                    {"name": "orchestrator", "scopes": [Scope.RESOLVE], "tokens": [_FEW]},
                ]
            }
        )
    )
    pipelines.write_text(pipelines_yaml(load_pipelines(None)))
    async with (
        running_service(
            redis_url=servers.redis_url,
            kafka_bootstrap_servers=servers.kafka,
            database_url=servers.database_url,
            database_first_probe_seconds=10.0,
            chaos_enabled=True,
            http_tokens_file=callers,
            http_max_body_bytes=10_000,
            pipeline_config_path=pipelines,
        ) as service,
        Platform(servers.kafka) as platform,
        Orchestrator(service.base, token=_ALL) as caller,
    ):
        await _make_known(service, platform, caller)
        calls: dict[str, Any] = {}
        for call in CALLS:
            answer = await _ask(caller, call)
            assert answer.status < 300, (call, answer)
            _keep(calls.setdefault(call.name, {}), call, answer)
        calls["healthz"]["answers"]["503"] = {"application/json": _unhealthy(calls["healthz"])}
        calls["describeApi"] = {
            "answers": {"200": {"application/json": {"openapi": "3.1.0", "info": {"title": "…"}, "paths": {}}}}
        }
        calls["followService"] = {"answers": {"200": {"text/event-stream": _EVENTS}}}
        problems = await _problems(service, caller, pipelines)
    return {"calls": calls, "problems": dict(sorted(problems.items()))}


async def _make_known(service: RunningService, platform: Platform, caller: Orchestrator) -> None:
    essays = ["essay-1", "essay-2", "essay-3"]
    await platform.send(registered(BATCH, essays), registered(ERASED, essays[:1]))
    await platform.send(*(spellchecked(BATCH, essay) for essay in essays[:2]), spellchecked(BATCH, essays[2], "failed"))
    await platform.send(phase_outcome(BATCH, "nlp", essays[:1], essays[1:2]))

    await platform.send_raw((topics.SPELLCHECK_COMPLETED, b"essay-4", b"not JSON"))

    async def known() -> bool:
        phases = (await caller.get(f"{_V1}/batches/{BATCH}")).json.get("phases", [])
        counted = {phase["phase"]: phase["completed"] + phase["failed"] for phase in phases}
        return (counted.get("spellcheck"), counted.get("nlp")) == (3, 2)

    async def other_known() -> bool:
        return (await caller.get(f"{_V1}/batches/{ERASED}")).status == 200

    async def dead_letter_known() -> bool:
        letters = (await caller.get(f"{_V1}/dead-letters")).json.get("dead_letters", [])
        return bool(letters)

    await wait_until(known)
    await wait_until(dead_letter_known)
    await wait_until(other_known)
    await wait_until(lambda: platform.caught_up(service.group))


async def _ask(caller: Orchestrator, call: Call, **headers: str) -> Answer:
    more = {} if call.body is None else {"json": call.body}
    return await caller.request(
        call.method,
        call.path.format(**call.at),
        params=dict(call.query),
        headers={"X-Correlation-ID": CORRELATION_ID, "User-Agent": "bos/2.1", **headers},
        **more,
    )


def _keep(example: dict[str, Any], call: Call, answer: Answer) -> None:
    media_type = answer.headers["Content-Type"]
    if call.path.startswith(("/ui", "/docs")):
        media_type = media_type.partition(";")[0]
    if parameters := {**call.at, **{name: _typed(value) for name, value in call.query.items()}}:
        example.setdefault("parameters", parameters)
    if call.body is not None:
        example["request"] = call.body
    body = answer.json if media_type == "application/json" else _excerpt(answer.body.decode())
    example.setdefault("answers", {}).setdefault(str(answer.status), {})[media_type] = body


def _typed(value: str) -> Any:
    return json.loads(value) if value.isdigit() or value in ("true", "false") else value


def _excerpt(text: str) -> str:
    """Metrics and files have hundreds of lines."""
    if text.startswith("# HELP"):
        return "\n".join(line for line in text.splitlines() if "bcs_pipeline_resolutions" in line)
    return text if len(text) < _MOST_CHARACTERS else f"{text[:_EXCERPT_CHARACTERS]}…"


def _unhealthy(healthz: Mapping[str, Any]) -> dict[str, Any]:
    """An actor that ignores its cancellation can't be had for an example."""
    healthy = healthz["answers"]["200"]["application/json"]
    return {
        **healthy,
        "status": "unhealthy",
        "message": "an actor ignores its cancellation; the process must be restarted",
        "checks": {
            **healthy["checks"],
            "actors_recoverable": False,
            "actors": {**healthy["checks"]["actors"], "publisher": "unresponsive"},
        },
    }


async def _problems(service: RunningService, caller: Orchestrator, pipelines: Path) -> dict[str, Any]:
    """The body of each kind of problem: as a request gets it, or as the code makes it where that would need a fault."""
    made = {kind: problem.response(CORRELATION_ID, 1).body for kind, problem in _made()}
    problems: dict[str, Any] = {kind: json.loads(body) for kind, body in made.items() if isinstance(body, bytes)}

    async def keep(answer: Answer) -> None:
        problems[answer.json["type"].rpartition(":")[2]] = answer.json

    define = partial(Call, name="", method="POST", path=f"{_V1}/pipelines/define")
    get = partial(Call, name="")
    reload = Call(name="", method="POST", path=f"{_V1}/pipelines/reload")
    erase = Call(name="", method="DELETE", path=f"{_V1}/batches/{ERASED}", query={"reason": "asked for"})
    for call in (
        define(body={**_DEFINE, "batch_id": "", "batch_metdata": {}}),
        define(body={**_DEFINE, "requested_pipeline": "nobody"}),
        define(body={**_DEFINE, "batch_metadata": {"prompt_attached": False}}),
        define(body={**_DEFINE, "batch_id": "batch_12399", "only": ["ai_feedback"]}),
        define(body={**_DEFINE, "large": "x" * 20_000}),
        get(path=f"{_V1}/batches/nobody"),
        get(path="/nothing"),
        get(path=f"{_V1}/pipelines/define"),
        Call(name="", method="POST", path=f"{_V1}/actors/nobody/kill"),
    ):
        await keep(await _ask(caller, call))
    await keep(await _ask(caller, define(), **{"Content-Type": "text/plain"}))
    await keep(await _ask(caller, get(path="/healthz"), Expect="something"))
    assert (await _ask(caller, erase)).status == 200
    await keep(await _ask(caller, get(path=f"{_V1}/batches/{ERASED}")))
    await anyio.Path(pipelines).write_text("phases: [{name: spellcheck, requires: [nobody]}]")
    await keep(await _ask(caller, reload))
    async with Orchestrator(service.base) as stranger, Orchestrator(service.base, token=_FEW) as orchestrator:
        await keep(await _ask(stranger, get(path=f"{_V1}/batches")))
        await keep(await _ask(orchestrator, get(path=f"{_V1}/batches")))
    return problems


def _made() -> Iterator[tuple[Kind, Problem]]:
    at_us = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp() * 1_000_000)
    errors = (
        IntakeBehind(1200, 75.0, 60.0),
        TooManyNewBatches(2.0),
        ReportOutdated(phase="spellcheck", fact="essay_phase_ended", essay_id="essay-1", at_us=at_us),
        InvalidationOutdated(phase="spellcheck", fact="essay_phase_ended", essay_id="essay-1", at_us=at_us),
    )
    made = [
        *(problem for error in errors if (problem := problem_of(error))),
        *(fault(), no_archive(), overloaded("too many requests at a time"), too_many_requests(1.0), unreadable()),
        Problem("body-too-late", "the request body did not arrive in time"),
        Problem("chaos-disabled", "BCS_CHAOS_ENABLED is not set"),
        Problem("deadline", "no answer in time"),
        Problem("draining", "the service is stopping"),
        Problem("head-too-large", "the head of the request is too large"),
        Problem("head-too-late", "the head of the request did not arrive in time"),
        Problem("not-running", "the actor does not run now"),
        Problem("tls-required", "this port speaks HTTP over TLS only: use https"),
        Problem("unavailable", "redis is out of reach"),
    ]
    for problem in made:
        yield problem.kind, problem


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FIRST = datetime(2026, 1, 31, 8, tzinfo=UTC)
_NUMBERS = {"partition": 3, "offset": 1234, "busy_seconds": 0.0, "oldest_message_seconds": 0.0, "seconds_behind": 0.0}


def steady(examples: dict[str, Any]) -> dict[str, Any]:
    """Examples with the same times, ids and places in each run. The order of the times stays."""
    text = json.dumps(examples, ensure_ascii=False)
    for number, time in enumerate(sorted(set(_TIME.findall(text)))):
        text = text.replace(time, (_FIRST + timedelta(seconds=number)).isoformat().replace("+00:00", "Z"))
    for number, found in enumerate(dict.fromkeys(_UUID.findall(text)), 1):
        if found != CORRELATION_ID:
            text = text.replace(found, f"0b7d1f52-5a1c-4c57-9d0e-{number:012d}")
    text = re.sub(r"/[^\" ]*/pipelines.yaml", "/etc/bcs/pipelines.yaml", text.replace("127.0.0.1", "10.0.0.7"))
    changed: dict[str, Any] = json.loads(text, object_hook=_with_usual_numbers)
    return changed


def _with_usual_numbers(members: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _NUMBERS[name] if name in _NUMBERS and value is not None else value for name, value in members.items()
    }


def shape(value: Any) -> Any:
    """The names and kinds of all members of a document, without the values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


if __name__ == "__main__":
    FILE.write_text(json.dumps(play(), indent=2, ensure_ascii=False) + "\n")
