"""How a route is declared: once, above its handler, for the server and for the description of the API."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from types import FunctionType
from typing import Any, Final, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter

from bcs.http.identity import Scope
from bcs.http.problems import Kind
from bcs.wire.events import Identifier

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[web.StreamResponse]])
Schema = dict[str, Any]

_ROUTE: Final = "bcs_route"
_parameter = re.compile(r"\{(\w+)\}")


class Group(StrEnum):
    """The groups in which the description shows the calls."""

    PIPELINES = "pipelines"
    PHASES = "phases"
    BATCHES = "batches"
    ACTORS = "actors"
    DEAD_LETTERS = "dead letters"
    PAGE = "page"
    HEALTH = "health"
    DESCRIPTION = "description"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    :param path: with the names of the parameters, as in `/batches/{id}`.
    :param name: the `operationId`; it never changes, because generated clients have a function of this name.
    :param answers: the type of the body for each status that is no problem; a media type, or several, for other text.
    :param lines: the types of the lines, where the answer has a JSON document in each line.
    :param problems: the problems of this call, besides those that each call has, and those of a body and a query.
    :param scope: the scope that the caller's token needs; None where any known caller may call.
    :param probe: True for a call that needs no token and has no rate, and that is on the port of the probes.
    :param public: True for a call that needs no token; unlike a probe it has a rate, and is on the usual port.
    :param body: the type of the request's body.
    :param query: the type of the request's query.
    :param path_parameters: the schema of each parameter in the path.
    :param spans_segments: True if the parameter in the path may have slashes.
    :param headers: the headers that the caller may send, each with its description.
    :param answer_headers: the headers of an answer that is no problem, each with its description.
    :param leads_to: the calls that take what this call's caller knows, with their parameters.
    :param span: the name of its spans; None for method and path.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    name: str
    group: Group
    summary: str
    answers: Mapping[HTTPStatus, Any]
    lines: Sequence[type] = ()
    problems: Sequence[Kind] = ()
    scope: Scope | None = None
    probe: bool = False
    public: bool = False
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    path_parameters: Mapping[str, Schema] = field(default_factory=dict)
    spans_segments: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    leads_to: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    span: str | None = None

    @property
    def resource(self) -> str:
        """The path as aiohttp takes it; `{id}` alone would not match braces."""
        pattern = "(?s:.+)" if self.spans_segments else "[^/]+"
        return _parameter.sub(rf"{{\1:{pattern}}}", self.path)


def serves(route: Route) -> Callable[[HandlerT], HandlerT]:
    """Declare the route of a handler."""

    def declare(handler: HandlerT) -> HandlerT:
        handler.__dict__[_ROUTE] = route
        return handler

    return declare


def routes_of(owner: type) -> list[Route]:
    """The routes of a class of handlers, in the order of its methods."""
    return [member.__dict__[_ROUTE] for member in _handlers(owner)]


def served_by(handlers: object) -> Iterator[tuple[Route, Handler]]:
    """The routes of an object, each with its handler."""
    for member in _handlers(type(handlers)):
        yield member.__dict__[_ROUTE], getattr(handlers, member.__name__)


def _handlers(owner: type) -> list[FunctionType]:
    return [member for member in vars(owner).values() if isinstance(member, FunctionType) and _ROUTE in member.__dict__]


BATCH_ID_PARAMETER: Final[Mapping[str, Schema]] = {
    "id": TypeAdapter(Identifier).json_schema() | {"description": "The id of the batch, percent-encoded."}
}
OF_PATH: Final = {"id": "$request.path.id"}
OF_BODY: Final = {"id": "$request.body#/batch_id"}
"""Parameters of a call that the answer leads to, from the path and from the body of the request."""
