"""All routes of the service, and their description."""

from __future__ import annotations

from functools import cache
from typing import Final

from pydantic_core import to_json

from bcs.http.openapi import openapi_document
from bcs.http.routes.actors import ActorHandlers
from bcs.http.routes.batches import BatchHandlers
from bcs.http.routes.dead_letters import DeadLetterHandlers
from bcs.http.routes.definitions import DefinitionHandlers
from bcs.http.routes.description import DescriptionHandlers
from bcs.http.routes.documentation import DocumentationHandlers
from bcs.http.routes.erasures import ErasureHandlers
from bcs.http.routes.explanations import ExplanationHandlers
from bcs.http.routes.finding import FindingHandlers
from bcs.http.routes.health import HealthHandlers
from bcs.http.routes.invalidation import InvalidationHandlers
from bcs.http.routes.pipelines import PipelineHandlers
from bcs.http.routes.ui import UiHandlers
from bcs.http.routing import Route, routes_of

HANDLERS: Final = (
    PipelineHandlers,
    ExplanationHandlers,
    DefinitionHandlers,
    InvalidationHandlers,
    FindingHandlers,
    BatchHandlers,
    ErasureHandlers,
    ActorHandlers,
    DeadLetterHandlers,
    UiHandlers,
    HealthHandlers,
    DescriptionHandlers,
    DocumentationHandlers,
)
"""In the order of the description."""


def all_routes() -> list[Route]:
    """The routes of all handlers."""
    return [route for handlers in HANDLERS for route in routes_of(handlers)]


@cache
def encoded_openapi() -> bytes:
    """The OpenAPI document as JSON."""
    return to_json(openapi_document(all_routes()))
