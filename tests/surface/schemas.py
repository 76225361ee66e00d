"""The documents that BCS reads: request bodies, queries, and consumed events."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from bcs.http.misspelt import Fields
from bcs.http.parameters import BatchesQuery, EssaysQuery, FoundHistoryQuery, HistoryQuery
from bcs.http.requests import Body, CompletePhase, DefinePipeline
from bcs.wire.events import (
    BatchEssaysRegistered,
    CJAssessmentCompletedV1,
    ELSBatchPhaseOutcomeV1,
    Envelope,
    EventData,
    SpellcheckPhaseCompletedV1,
)
from tests.surface.facts import said_lines_of

DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "body of pipelines/define": DefinePipeline,
    "body of phases/complete": CompletePhase,
    "query of batches": BatchesQuery,
    "query of batches/{id}": EssaysQuery,
    "query of batches/{id}/history": HistoryQuery,
    "query of history": FoundHistoryQuery,
    "envelope of events": Envelope[EventData],
    "data of essays.registered": BatchEssaysRegistered,
    "data of spellcheck.phase.completed": SpellcheckPhaseCompletedV1,
    "data of cj_assessment.completed": CJAssessmentCompletedV1,
    "data of els.batch.phase.outcome": ELSBatchPhaseOutcomeV1,
}


def facts_of_schemas(documents: Mapping[str, type[BaseModel]]) -> list[str]:
    """Lines for each document: names, types and limits of its fields, and which it may not lack."""
    lines = []
    for name, model in documents.items():
        schema = model.model_json_schema()
        lines += said_lines_of(name, _shape(schema, schema.get("$defs", {})))
        if issubclass(model, Body):
            lines += [f"{name}: reads {field}" for field in _paths("", model.fields)]
    return lines


def _paths(above: str, fields: Fields) -> list[str]:
    """The fields that callers may send, those included that are ignored."""
    return [
        path for field, below in fields.items() for path in (above + field, *_paths(f"{above}{field}.", below or {}))
    ]


def _shape(schema: object, definitions: Mapping[str, object]) -> object:
    """A schema without the names of classes and the words of their docstrings, and with one line for what is needed."""
    if isinstance(schema, list):
        return [_shape(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _shape(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    shape: dict[str, object] = {}
    for name, value in schema.items():
        if name in ("required", "enum"):
            shape[name] = ", ".join(value)
        elif name not in ("$defs", "title", "description"):
            shape[name] = _shape(value, definitions)
    return shape
