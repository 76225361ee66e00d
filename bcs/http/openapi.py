"""The description of the HTTP API: an OpenAPI 3.1 document, made from the declared routes and their types.

The names of phases and pipelines come from the configuration, so the document, which is the same for each service, does
not list them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from bcs import __version__
from bcs.http import answers
from bcs.http.guard import CORRELATION_HEADER
from bcs.http.identity import Scope
from bcs.http.problems import KINDS, Kind
from bcs.http.routing import Group, Route, Schema

BEARER: Final = "bearer"
CERTIFICATE: Final = "certificate"
"""The names of the security schemes."""

_JSON = "application/json"
_PROBLEM_JSON = "application/problem+json"
_SCOPES = {
    Scope.RESOLVE: "ask which phases a batch still needs",
    Scope.REPORT: "report a phase",
    Scope.READ: "read batches, histories, pipelines, dead letters, actors and the stream of the page",
    Scope.OPERATE: "take completions back, erase batches, replay dead letters, reload the pipeline file, kill actors",
}
_GROUPS = {
    Group.PIPELINES: "Which phases of a pipeline a batch still needs, and why",
    Group.PHASES: "Reports about whole phases, and completions that are taken back",
    Group.BATCHES: "What is known of batches, and their histories",
    Group.ACTORS: "The tree of actors",
    Group.DEAD_LETTERS: "Messages and requests that could not be processed",
    Group.PAGE: "The page that shows the service as it runs; 404 with `BCS_UI=false`",
    Group.HEALTH: "Probes and metrics, which need no token",
    Group.DESCRIPTION: "The description of the API",
}
_CHALLENGED: frozenset[Kind] = frozenset({"forbidden", "unauthenticated"})
_CORRELATION_REFERENCE = {"$ref": f"#/components/headers/{CORRELATION_HEADER}"}
_CORRELATION = "The correlation id: at most 100 printable ASCII characters. BCS makes one where there is none."
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
# What a caller gets that is not known, or asks too often; probes and metrics are for everybody.
_OF_CALLERS: tuple[Kind, ...] = ("unauthenticated", "too-many-requests")
_WITH_BODY: tuple[Kind, ...] = ("invalid-request", "body-too-late", "content-too-large", "unsupported-media-type")

_REFERENCES = "#/components/schemas/{model}"
_EXAMPLES = Path(__file__).with_name("examples.json")


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document about routes."""
    return _Document(routes, json.loads(_EXAMPLES.read_text())).whole()


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a member."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Document:
    """The document while it is made.

    :param examples: of requests and answers by the names of the calls, and of problems by their kinds.
    """

    def __init__(self, routes: Sequence[Route], examples: Mapping[str, Any]) -> None:
        self._routes = routes
        self._calls: Mapping[str, Any] = examples["calls"]
        self._problems: Mapping[str, Any] = examples["problems"]
        self._responses: dict[str, Any] = {}
        inputs: dict[Any, Any] = {
            body: (body, "serialization", TypeAdapter(body))
            for body in [*dict.fromkeys(_bodies(routes)), answers.Problem]
        }
        inputs |= {route.body: (route.body, "validation", TypeAdapter(route.body)) for route in routes if route.body}
        schemas, definitions = TypeAdapter.json_schemas(
            inputs.values(), ref_template=_REFERENCES, schema_generator=_Untitled
        )
        self._schemas = {body: schema for (body, _), schema in schemas.items()}
        self._definitions: dict[str, Schema] = definitions["$defs"]

    def whole(self) -> dict[str, Any]:
        """The document."""
        paths: dict[str, dict[str, Any]] = {}
        for route in self._routes:
            paths.setdefault(route.path, {})[route.method.lower()] = self._operation(route)
        self._problem(["not-found"])
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
            "servers": [{"url": "/"}],
            "tags": [{"name": group, "description": text} for group, text in _GROUPS.items()],
            "paths": paths,
            "components": {
                "schemas": self._definitions,
                "responses": dict(sorted(self._responses.items())),
                "examples": {kind: {"value": value} for kind, value in sorted(self._problems.items())},
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
                    },
                    CERTIFICATE: {
                        "type": "mutualTLS",
                        "description": "A client certificate of a caller with the scope that the call names, where the "
                        "service is set up for TLS with client certificates.",
                    },
                },
            },
        }

    def _operation(self, route: Route) -> dict[str, Any]:
        self._definitions |= _query(route).get("$defs", {})
        kinds: dict[HTTPStatus, list[Kind]] = {}
        for kind in sorted(problems_of(route)):
            kinds.setdefault(KINDS[kind].status, []).append(kind)
        answered = {status: self._problem(found) for status, found in kinds.items()}
        for status, body in route.answers.items():
            answered[status] = self._answer(route, body, status, answered.get(status))
        examples = self._calls.get(route.name, {})
        operation: dict[str, Any] = {
            "operationId": route.name,
            "summary": route.summary,
            "tags": [route.group],
            "parameters": list(_parameters(route, examples.get("parameters", {}))),
            "responses": {str(status.value): answered[status] for status in sorted(answered)},
        }
        if route.body:
            media = {"schema": self._schemas[route.body], "example": examples.get("request")}
            operation["requestBody"] = {"required": True, "content": {_JSON: media}}
        if not (route.probe or route.public):
            scopes = [route.scope] if route.scope else []
            operation["security"] = [{}, {BEARER: scopes}, {CERTIFICATE: scopes}]
        return operation

    def _answer(self, route: Route, body: Any, status: HTTPStatus, problem: Mapping[str, Any] | None) -> dict[str, Any]:
        """An answer that is no problem.

        :param problem: the response that is a problem, where there is one with the same status.
        """
        content: dict[str, Any]
        if isinstance(body, str | tuple):
            media_types = (body,) if isinstance(body, str) else body
            content = {media_type: {"schema": self._text(route, media_type)} for media_type in media_types}
        else:
            content = {_JSON: {"schema": self._schemas[body]}}
        for media_type, example in (
            self._calls.get(route.name, {}).get("answers", {}).get(str(status.value), {}).items()
        ):
            content[media_type]["example"] = example
        answer: dict[str, Any] = {
            "description": status.phrase,
            "headers": {
                CORRELATION_HEADER: _CORRELATION_REFERENCE,
                **{
                    name: {"description": description, "required": True, "schema": {"type": "string", "minLength": 1}}
                    for name, description in route.answer_headers.items()
                },
            },
            "content": content,
        }
        if problem:
            name = problem["$ref"].rpartition("/")[2]
            answer["content"] |= self._responses[name]["content"]
        if route.leads_to:
            answer["links"] = {
                name: {"operationId": name, "parameters": dict(given)} for name, given in route.leads_to.items()
            }
        return answer

    def _text(self, route: Route, media_type: str) -> Schema:
        """The schema of a body that is no JSON document. OpenAPI 3.1 has no place for that of each of many lines."""
        if not route.lines:
            return {"type": "string"}
        each = {"anyOf": [self._schemas[line] for line in route.lines]}
        text = "A JSON document in each line; `contentSchema` is that of a line."
        return {"type": "string", "description": text, "contentMediaType": media_type, "contentSchema": each}

    def _problem(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """A reference to the response that is one of several problems of the same status."""
        headers: dict[str, Any] = {CORRELATION_HEADER: _CORRELATION_REFERENCE}
        again = [KINDS[kind].retry for kind in kinds]
        if any(again):
            headers["Retry-After"] = {
                "description": "The same request may be sent again after this many seconds.",
                "required": all(again),
                "schema": {"type": "integer", "minimum": 0},
            }
        if not _CHALLENGED.isdisjoint(kinds):
            required = _CHALLENGED.issuperset(kinds)
            headers["WWW-Authenticate"] = {"required": required, "schema": {"type": "string", "pattern": "^Bearer"}}
        if "method-not-allowed" in kinds:
            headers["Allow"] = {"required": True, "schema": {"type": "string"}}
        types = {"type": {"enum": [f"urn:bcs:problem:{kind}" for kind in kinds]}}
        media: dict[str, Any] = {"schema": {**self._schemas[answers.Problem], "properties": types}}
        if examples := {kind: {"$ref": f"#/components/examples/{kind}"} for kind in kinds if kind in self._problems}:
            media["examples"] = examples
        name = "Or".join(kind.title().replace("-", "") for kind in kinds)
        self._responses[name] = {
            "description": "; ".join(f"`{kind}`: {KINDS[kind].title}" for kind in kinds),
            "headers": headers,
            "content": {_PROBLEM_JSON: media},
        }
        return {"$ref": f"#/components/responses/{name}"}


def problems_of(route: Route) -> set[Kind]:
    """All problems that a route can answer with."""
    callers: tuple[Kind, ...] = () if route.probe else ("too-many-requests",) if route.public else _OF_CALLERS
    scope: tuple[Kind, ...] = ("forbidden",) if route.scope else ()
    body: tuple[Kind, ...] = _WITH_BODY if route.body else ()
    query: tuple[Kind, ...] = ("invalid-request",) if route.query else ()
    return {*_EVERYWHERE, *callers, *scope, *body, *query, *route.problems}


def _bodies(routes: Iterable[Route]) -> Iterator[Any]:
    """The types of all answers."""
    for route in routes:
        for body in route.answers.values():
            if not isinstance(body, str | tuple):
                yield body
        yield from route.lines


def _parameters(route: Route, examples: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parameters of a route, each with its example where there is one."""
    for parameter in _declared(route):
        name = parameter["name"]
        yield {**parameter, "example": examples[name]} if name in examples else parameter


def _declared(route: Route) -> Iterator[dict[str, Any]]:
    for name, schema in route.path_parameters.items():
        yield _parameter("path", name, dict(schema), required=True)
    query = _query(route)
    required = query.get("required", ())
    for name, schema in query["properties"].items():
        # A query has no null; a parameter is left out instead.
        [given] = [one for one in schema.pop("anyOf", [schema]) if one.get("type") != "null"]
        if schema.get("default", ...) is None:
            del schema["default"]
        yield _parameter("query", name, schema | given, required=name in required)
    headers = dict(route.headers)
    if route.body is None or "correlation_id" not in route.body.model_fields:
        headers[CORRELATION_HEADER] = _CORRELATION
    for name, description in headers.items():
        yield _parameter("header", name, {"type": "string", "description": description}, required=False)


def _query(route: Route) -> Schema:
    if route.query is None:
        return {"properties": {}}
    return route.query.model_json_schema(ref_template=_REFERENCES, schema_generator=_Untitled)


def _parameter(place: str, name: str, schema: Schema, *, required: bool) -> dict[str, Any]:
    described = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": place, "required": required, **described, "schema": schema}
