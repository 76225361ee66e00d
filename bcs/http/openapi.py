"""The description of the HTTP API: an OpenAPI 3.1 document, made from the types of requests and answers.

The names of phases and pipelines come from the configuration, so the document, which is the same for each service, does
not list them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

from bcs import __version__
from bcs.http import answers
from bcs.http.explanation_answers import ResolvedWithOptions
from bcs.http.guard import CORRELATION_HEADER
from bcs.http.identity import Scope
from bcs.http.lines import NDJSON
from bcs.http.parameters import (
    BATCHES,
    HISTORY,
    PIPELINES,
    BatchesQuery,
    DefineQuery,
    ErasureQuery,
    EssaysQuery,
    ExplainQuery,
    FoundHistoryQuery,
    GraphQuery,
    HistoryQuery,
)
from bcs.http.plan_requests import PlanPipelines
from bcs.http.problems import TITLES, Kind
from bcs.http.requests import DEFINITIONS_HEADER, Body, CompletePhase, DefinePipeline, InvalidatedPhases
from bcs.http.routes.definitions import DOT_TYPE, MERMAID_TYPE, SVG_TYPE
from bcs.wire.events import Identifier

OPENAPI: Final = "/openapi.json"
BEARER: Final = "bearer"
"""The name of the security scheme."""

Schema = dict[str, Any]

_JSON = "application/json"
_PROBLEM_JSON = "application/problem+json"
_SCOPES = {
    Scope.RESOLVE: "ask which phases a batch still needs",
    Scope.REPORT: "report a phase",
    Scope.READ: "read batches, histories, pipelines and actors",
    Scope.OPERATE: "take completions back, erase batches, reload the pipeline file, kill actors",
}

STATUSES: Mapping[Kind, HTTPStatus] = {
    "batch-erased": HTTPStatus.GONE,
    "body-too-late": HTTPStatus.REQUEST_TIMEOUT,
    "chaos-disabled": HTTPStatus.FORBIDDEN,
    "content-too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "deadline": HTTPStatus.SERVICE_UNAVAILABLE,
    "definitions-refused": HTTPStatus.CONFLICT,
    "draining": HTTPStatus.SERVICE_UNAVAILABLE,
    "expectation-failed": HTTPStatus.EXPECTATION_FAILED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "head-too-large": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head-too-late": HTTPStatus.REQUEST_TIMEOUT,
    "intake-behind": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "invalid-request": HTTPStatus.BAD_REQUEST,
    "invalidation-outdated": HTTPStatus.CONFLICT,
    "method-not-allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "needed-phase-left-out": HTTPStatus.CONFLICT,
    "no-archive": HTTPStatus.NOT_FOUND,
    "not-found": HTTPStatus.NOT_FOUND,
    "not-running": HTTPStatus.CONFLICT,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "prompt-required": HTTPStatus.CONFLICT,
    "report-outdated": HTTPStatus.CONFLICT,
    "tls-required": HTTPStatus.BAD_REQUEST,
    "too-many-new-batches": HTTPStatus.TOO_MANY_REQUESTS,
    "too-many-requests": HTTPStatus.TOO_MANY_REQUESTS,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "unknown-actor": HTTPStatus.NOT_FOUND,
    "unknown-batch": HTTPStatus.NOT_FOUND,
    "unknown-pipeline": HTTPStatus.NOT_FOUND,
    "unreadable-request": HTTPStatus.BAD_REQUEST,
    "unsupported-media-type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}
"""The status of each kind of problem; `http-error` has none of its own, and no known request gets it."""

_RETRY: frozenset[Kind] = frozenset(
    {
        *("body-too-late", "deadline", "draining", "head-too-late", "not-running", "overloaded", "unavailable"),
        *("intake-behind", "too-many-new-batches", "too-many-requests"),
    }
)
_CHALLENGED: frozenset[Kind] = frozenset({"forbidden", "unauthenticated"})
_CORRELATION_REFERENCE = {"$ref": f"#/components/headers/{CORRELATION_HEADER}"}
# What HTTP itself, the guard and the connection can answer, on each path.
_EVERYWHERE: tuple[Kind, ...] = (
    "unreadable-request",
    "tls-required",
    "method-not-allowed",
    "head-too-late",
    "expectation-failed",
    "head-too-large",
    "internal",
    "overloaded",
    "deadline",
)
# What a caller gets that is not known, may not do this, or asks too often; probes and metrics are for everybody.
_OF_CALLERS: tuple[Kind, ...] = ("unauthenticated", "too-many-requests")
_WITH_BODY: tuple[Kind, ...] = ("invalid-request", "body-too-late", "content-too-large", "unsupported-media-type")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One method of one path.

    :param answers: the type of the body for each status that is no problem; a media type, or several, for other text.
    :param problems: the problems of this call, besides those that each call has.
    :param public: True for a call that needs no token and has no rate.
    :param scope: the scope that the caller's token needs; None where any known caller may call.
    :param answer_headers: the headers of an answer that is no problem, each with its description.
    :param leads_to: the calls that take what this call's caller knows, with their parameters.
    """

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[HTTPStatus, Any]
    problems: Sequence[Kind] = ()
    public: bool = False
    scope: Scope | None = None
    body: type[Body] | None = None
    example: Mapping[str, Any] | None = None
    query: type[Body] | None = None
    path_parameters: Mapping[str, Schema] | None = None
    headers: Mapping[str, str]
    leads_to: Mapping[str, Mapping[str, str]] | None = None
    answer_headers: Mapping[str, str] = field(default_factory=dict)


_TRACE = {
    "traceparent": "W3C trace context. A valid one goes on into the envelopes of the announcements.",
    "tracestate": "W3C trace context; used only with a valid `traceparent`.",
}
_CORRELATION = {
    CORRELATION_HEADER: "The correlation id, where the body has none: at most 100 printable ASCII characters. "
    "BCS makes one where there is none."
}
_DEFINITIONS = {
    DEFINITIONS_HEADER: "The version of the pipeline file, if it has one, and the hash of its content, with a blank "
    "between."
}
_BATCH_ID = {"id": TypeAdapter(Identifier).json_schema() | {"description": "The id of the batch, percent-encoded."}}
_OF_BODY = {"id": "$request.body#/batch_id"}
_OF_BODY_WITH_PIPELINE = {**_OF_BODY, "pipeline": "$request.body#/requested_pipeline"}
_PIPELINE = {
    "pipeline": TypeAdapter(Identifier).json_schema()
    | {"description": "A phase or a pipeline of the configuration, percent-encoded."}
}
_OF_PATH = {"id": "$request.path.id"}

_CALLS = (
    _Call(
        method="post",
        path="/internal/v1/pipelines/define",
        name="definePipeline",
        summary="Say which phases of a pipeline a batch still needs",
        answers={HTTPStatus.OK: ResolvedWithOptions},
        problems=(
            *("unknown-pipeline", "prompt-required", "needed-phase-left-out", "batch-erased", "too-many-new-batches"),
            *("intake-behind", "unavailable", *_WITH_BODY),
        ),
        scope=Scope.RESOLVE,
        body=DefinePipeline,
        query=DefineQuery,
        example={
            "batch_id": "batch_12345",
            "requested_pipeline": "ai_feedback",
            "correlation_id": "550e8400-e29b-41d4-a716-446655440000",
        },
        headers=_TRACE,
        answer_headers=_DEFINITIONS,
        leads_to={"showBatch": _OF_BODY, "showHistory": _OF_BODY, "explainPipeline": _OF_BODY_WITH_PIPELINE},
    ),
    _Call(
        method="get",
        path=PIPELINES,
        name="listPipelines",
        summary="List the pipelines and phases that can be requested",
        answers={HTTPStatus.OK: answers.Pipelines},
        scope=Scope.READ,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path=f"{PIPELINES}/{{name}}/graph",
        name="drawPipeline",
        summary="Draw the phases of a pipeline, with the state of a batch in colours",
        answers={HTTPStatus.OK: (MERMAID_TYPE, DOT_TYPE, SVG_TYPE)},
        problems=("invalid-request", "unknown-pipeline", "unknown-batch", "batch-erased", "unavailable"),
        scope=Scope.READ,
        query=GraphQuery,
        path_parameters={
            "name": {
                "type": "string",
                "minLength": 1,
                "examples": ["ai_feedback"],
                "description": "A phase or a pipeline of the configuration.",
            }
        },
        headers=_CORRELATION,
    ),
    _Call(
        method="post",
        path=f"{PIPELINES}/reload",
        name="reloadPipelines",
        summary="Read the pipeline file again, and use it if it is valid",
        answers={HTTPStatus.OK: answers.DefinitionsReloaded},
        problems=("definitions-refused",),
        scope=Scope.OPERATE,
        headers=_CORRELATION,
        leads_to={"listPipelines": {}},
    ),
    _Call(
        method="post",
        path="/internal/v1/pipelines/plan",
        name="planPipelines",
        summary="Say which phases of a pipeline many batches would still need, without any effect: a line for each",
        answers={HTTPStatus.OK: NDJSON},
        problems=("unknown-pipeline", "unavailable", *_WITH_BODY),
        scope=Scope.READ,
        body=PlanPipelines,
        example={"batch_ids": ["batch_12345", "batch_12346"], "requested_pipeline": "nlp", "force": "requested"},
        headers=_CORRELATION,
        answer_headers=_DEFINITIONS,
    ),
    _Call(
        method="post",
        path="/internal/v1/phases/complete",
        name="completePhase",
        summary="Report a whole phase of a batch",
        answers={HTTPStatus.OK: answers.PhaseRecorded},
        problems=("report-outdated", "batch-erased", "too-many-new-batches", "unavailable", *_WITH_BODY),
        scope=Scope.REPORT,
        body=CompletePhase,
        example={"batch_id": "batch_12345", "phase_name": "spellcheck", "success": True},
        headers=_CORRELATION,
        leads_to={"showBatch": _OF_BODY, "showHistory": _OF_BODY},
    ),
    _Call(
        method="get",
        path=BATCHES,
        name="findBatches",
        summary="Find batches by their state and their last change, the last changed first",
        answers={HTTPStatus.OK: answers.Batches},
        problems=("invalid-request", "unknown-pipeline", "unavailable"),
        scope=Scope.READ,
        query=BatchesQuery,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path=f"{BATCHES}/{{id}}",
        name="showBatch",
        summary="Show what is known of a batch, and which essays hold its phases back",
        answers={HTTPStatus.OK: answers.Batch},
        problems=("invalid-request", "unknown-batch", "batch-erased", "unavailable"),
        scope=Scope.READ,
        query=EssaysQuery,
        path_parameters=_BATCH_ID,
        headers=_CORRELATION,
        leads_to={"showHistory": _OF_PATH},
    ),
    _Call(
        method="delete",
        path=f"{BATCHES}/{{id}}",
        name="eraseBatch",
        summary="Erase a batch from the stores, and drop what arrives about it for a time",
        answers={HTTPStatus.OK: answers.BatchErased},
        problems=("invalid-request", "unavailable"),
        scope=Scope.OPERATE,
        query=ErasureQuery,
        path_parameters=_BATCH_ID,
        headers=_CORRELATION,
        leads_to={"showHistory": _OF_PATH},
    ),
    _Call(
        method="get",
        path=f"{BATCHES}/{{id}}/history",
        name="showHistory",
        summary="Show what became known of a batch and what was answered because of it, newest first",
        answers={HTTPStatus.OK: answers.History},
        problems=("invalid-request", "no-archive", "unknown-batch", "unavailable"),
        scope=Scope.READ,
        query=HistoryQuery,
        path_parameters=_BATCH_ID,
        headers=_CORRELATION,
    ),
    _Call(
        method="post",
        path=f"{BATCHES}/{{id}}/invalidate",
        name="invalidatePhases",
        summary="Take completions of a batch back, so that phases run again",
        answers={HTTPStatus.OK: answers.PhasesInvalidated},
        problems=("unknown-batch", "batch-erased", "invalidation-outdated", "unavailable", *_WITH_BODY),
        scope=Scope.OPERATE,
        body=InvalidatedPhases,
        example={"phases": ["spellcheck"], "reason": "the dictionary was wrong, see INC-7", "dry_run": True},
        path_parameters=_BATCH_ID,
        headers=_CORRELATION,
        leads_to={"showBatch": _OF_PATH, "showHistory": _OF_PATH},
    ),
    _Call(
        method="get",
        path=f"{BATCHES}/{{id}}/explain/{{pipeline}}",
        name="explainPipeline",
        summary="Explain which phases of a pipeline a batch still needs, without any effect",
        answers={HTTPStatus.OK: ResolvedWithOptions},
        problems=("invalid-request", "unknown-pipeline", "batch-erased", "unavailable"),
        scope=Scope.READ,
        query=ExplainQuery,
        path_parameters=_BATCH_ID | _PIPELINE,
        headers=_CORRELATION,
        leads_to={"showBatch": _OF_PATH, "showHistory": _OF_PATH},
    ),
    _Call(
        method="get",
        path=HISTORY,
        name="findHistory",
        summary="Find the entries of all batches' histories with a correlation id, newest first",
        answers={HTTPStatus.OK: answers.FoundHistory},
        problems=("invalid-request", "no-archive", "unavailable"),
        scope=Scope.READ,
        query=FoundHistoryQuery,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path="/internal/v1/actors",
        name="showActors",
        summary="Show the tree of actors",
        answers={HTTPStatus.OK: answers.Actor},
        scope=Scope.READ,
        headers=_CORRELATION,
    ),
    _Call(
        method="post",
        path="/internal/v1/actors/{name}/kill",
        name="killActor",
        summary="Kill one actor, which its supervisor starts again",
        answers={HTTPStatus.ACCEPTED: answers.ActorKilled},
        problems=("chaos-disabled", "unknown-actor", "not-running"),
        scope=Scope.OPERATE,
        path_parameters={
            "name": {
                "type": "string",
                "minLength": 1,
                "examples": ["publisher"],
                "description": (
                    "`metrics`, `publisher`, `archive`, `batches`, `intake`, `http`, or `batches/<batch id>`."
                ),
            }
        },
        headers=_CORRELATION,
        leads_to={"showActors": {}},
    ),
    _Call(
        method="get",
        path="/healthz",
        name="healthz",
        summary="Liveness: 503 while an actor ignores its cancellation",
        answers={HTTPStatus.OK: answers.Health, HTTPStatus.SERVICE_UNAVAILABLE: answers.Health},
        public=True,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path="/readyz",
        name="readyz",
        summary="Readiness: 503 while the service stops, or while neither Redis nor PostgreSQL can answer",
        answers={HTTPStatus.OK: answers.Ready},
        problems=("draining", "unavailable"),
        public=True,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path="/metrics",
        name="metrics",
        summary="The metrics in Prometheus' text format",
        answers={HTTPStatus.OK: CONTENT_TYPE_LATEST},
        public=True,
        headers=_CORRELATION,
    ),
    _Call(
        method="get",
        path=OPENAPI,
        name="describeApi",
        summary="This document",
        answers={HTTPStatus.OK: dict[str, Any]},
        headers=_CORRELATION,
    ),
)


@cache
def encoded_openapi() -> bytes:
    """The document as JSON."""
    return to_json(_document())


def _document() -> dict[str, Any]:
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    responses: dict[str, Any] = {}
    for call in _CALLS:
        paths.setdefault(call.path, {})[call.method] = _operation(call, schemas, responses)
    _problem(["not-found"], schemas, responses)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Batch Conductor Service",
            "version": __version__,
            "description": (
                "Says which phases of a pipeline a batch of essays still needs. Each GET also takes HEAD. "
                "Unknown fields of a request are ignored. To send the same request again is harmless."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "responses": dict(sorted(responses.items())),
            "headers": {
                CORRELATION_HEADER: {
                    "description": "The correlation id, percent-encoded where a header can't have its characters.",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1},
                }
            },
            "securitySchemes": {
                BEARER: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token with the scope that the call names, where the service is set up to ask "
                    f"for tokens. {' '.join(f'`{scope}`: {what}.' for scope, what in _SCOPES.items())}",
                }
            },
        },
    }


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a member."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Schemas:
    """The schemas of all bodies.

    :ivar definitions: name to schema.
    """

    def __init__(self) -> None:
        bodies = [body for call in _CALLS for body in call.answers.values() if not isinstance(body, str | tuple)]
        inputs = {body: (body, "serialization", TypeAdapter(body)) for body in [*bodies, answers.Problem]}
        inputs |= {call.body: (call.body, "validation", TypeAdapter(call.body)) for call in _CALLS if call.body}
        schemas, definitions = TypeAdapter.json_schemas(
            inputs.values(),  # type: ignore[arg-type]
            ref_template="#/components/schemas/{model}",
            schema_generator=_Untitled,
        )
        self._of = {body: schema for (body, _), schema in schemas.items()}
        self.definitions: dict[str, Schema] = definitions["$defs"]

    def of(self, body: Any) -> Schema:
        """The schema of a body, which refers to the definitions."""
        return self._of[body]


def _operation(call: _Call, schemas: _Schemas, responses: dict[str, Any]) -> dict[str, Any]:
    """One operation.

    :param responses: gets the responses that are problems.
    """
    kinds: dict[HTTPStatus, list[Kind]] = {}
    callers = () if call.public else (*_OF_CALLERS, *(("forbidden",) if call.scope else ()))
    for kind in sorted((*_EVERYWHERE, *callers, *call.problems)):
        kinds.setdefault(STATUSES[kind], []).append(kind)
    answered = {status: _problem(found, schemas, responses) for status, found in kinds.items()}
    for status, body in call.answers.items():
        answered[status] = _answer(call, body, status, schemas, answered.get(status))
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "parameters": list(_parameters(call)),
        "responses": {str(status.value): answered[status] for status in sorted(answered)},
    }
    if call.body:
        media = {"schema": schemas.of(call.body), "example": call.example}
        operation["requestBody"] = {"required": True, "content": {_JSON: media}}
    if not call.public:
        operation["security"] = [{}, {BEARER: [call.scope] if call.scope else []}]
    return operation


def _answer(
    call: _Call, body: Any, status: HTTPStatus, schemas: _Schemas, problem: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An answer that is no problem.

    :param problem: the response that is a problem, where there is one with the same status.
    """
    if isinstance(body, str | tuple):
        media_types = (body,) if isinstance(body, str) else body
        content = {media_type: {"schema": {"type": "string"}} for media_type in media_types}
    else:
        content = {_JSON: {"schema": schemas.of(body)}}
    answer: dict[str, Any] = {
        "description": status.phrase,
        "headers": {
            CORRELATION_HEADER: _CORRELATION_REFERENCE,
            **{
                name: {"description": description, "required": True, "schema": {"type": "string", "minLength": 1}}
                for name, description in call.answer_headers.items()
            },
        },
        "content": content,
    }
    if problem:
        answer["content"][_PROBLEM_JSON] = {"schema": schemas.of(answers.Problem)}
    if call.leads_to:
        answer["links"] = {
            name: {"operationId": name, "parameters": dict(given)} for name, given in call.leads_to.items()
        }
    return answer


def _problem(kinds: Sequence[Kind], schemas: _Schemas, responses: dict[str, Any]) -> dict[str, Any]:
    """A reference to the response that is one of several problems of the same status."""
    headers: dict[str, Any] = {CORRELATION_HEADER: _CORRELATION_REFERENCE}
    if not _RETRY.isdisjoint(kinds):
        headers["Retry-After"] = {
            "description": "The same request may be sent again after this many seconds.",
            "required": _RETRY.issuperset(kinds),
            "schema": {"type": "integer", "minimum": 0},
        }
    if not _CHALLENGED.isdisjoint(kinds):
        required = _CHALLENGED.issuperset(kinds)
        headers["WWW-Authenticate"] = {"required": required, "schema": {"type": "string", "pattern": "^Bearer"}}
    if "method-not-allowed" in kinds:
        headers["Allow"] = {"required": True, "schema": {"type": "string"}}
    types = {"type": {"enum": [f"urn:bcs:problem:{kind}" for kind in kinds]}}
    name = "Or".join(kind.title().replace("-", "") for kind in kinds)
    responses[name] = {
        "description": "; ".join(f"`{kind}`: {TITLES[kind]}" for kind in kinds),
        "headers": headers,
        "content": {_PROBLEM_JSON: {"schema": {**schemas.of(answers.Problem), "properties": types}}},
    }
    return {"$ref": f"#/components/responses/{name}"}


def _parameters(call: _Call) -> Iterator[dict[str, Any]]:
    for name, schema in (call.path_parameters or {}).items():
        yield _parameter("path", name, schema, required=True)
    query = call.query.model_json_schema(schema_generator=_Untitled) if call.query else {"properties": {}}
    required = query.get("required", ())
    for name, schema in query["properties"].items():
        # A query has no null; a parameter is left out instead.
        [given] = [one for one in schema.pop("anyOf", [schema]) if one.get("type") != "null"]
        if schema.get("default", ...) is None:
            del schema["default"]
        yield _parameter("query", name, schema | given, required=name in required)
    for name, description in call.headers.items():
        yield _parameter("header", name, {"type": "string", "description": description}, required=False)


def _parameter(place: str, name: str, schema: Schema, *, required: bool) -> dict[str, Any]:
    described = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": place, "required": required, **described, "schema": schema}
