"""The pipeline definitions in use: shows them, draws them, and reads their file again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import anyio
from aiohttp import web

from bcs.domain.graphs import dot, mermaid, standings_of, svg
from bcs.domain.resolution import resolve
from bcs.http import definition_answers
from bcs.http.documents import definitions_version, difference_document, pipelines_document
from bcs.http.guard import BATCH_ID, asked_by
from bcs.http.identity import Scope
from bcs.http.parameters import PIPELINES, GraphFormat, GraphQuery, parse_query
from bcs.http.problems import unknown_batch
from bcs.http.replies import reply_encoded, reply_json
from bcs.http.routing import Group, Route, serves
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.batch_reader import BatchReader

# Browsers show Mermaid's text as it is.
MERMAID_TYPE, DOT_TYPE = "text/plain; charset=utf-8", "text/vnd.graphviz; charset=utf-8"
SVG_TYPE = "image/svg+xml"
_WRITERS: Mapping[GraphFormat, tuple[Callable[..., str], str]] = {
    GraphFormat.MERMAID: (mermaid, MERMAID_TYPE),
    GraphFormat.DOT: (dot, DOT_TYPE),
    GraphFormat.SVG: (svg, SVG_TYPE),
}


_NAME = {
    "type": "string",
    "minLength": 1,
    "examples": ["ai_feedback"],
    "description": "A phase or a pipeline of the configuration.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionHandlers:
    """The handlers of the definitions' routes.

    :param reading: limits the number of batches that are read at the same time.
    """

    definitions: ActiveDefinitions
    reader: BatchReader
    reading: anyio.Semaphore

    @serves(
        Route(
            method="GET",
            path=PIPELINES,
            name="listPipelines",
            group=Group.PIPELINES,
            summary="List the pipelines and phases that can be requested",
            answers={HTTPStatus.OK: definition_answers.Pipelines},
            scope=Scope.READ,
        )
    )
    async def show(self, _: web.Request) -> web.Response:
        """GET /internal/v1/pipelines."""
        return reply_json(pipelines_document(self.definitions.current.definitions))

    @serves(
        Route(
            method="GET",
            path=f"{PIPELINES}/{{name}}/graph",
            name="drawPipeline",
            group=Group.PIPELINES,
            summary="Draw the phases of a pipeline, with the state of a batch in colours",
            answers={HTTPStatus.OK: (MERMAID_TYPE, DOT_TYPE, SVG_TYPE)},
            problems=("unknown-pipeline", "unknown-batch", "batch-erased", "unavailable"),
            scope=Scope.READ,
            query=GraphQuery,
            path_parameters={"name": _NAME},
        )
    )
    async def graph(self, request: web.Request) -> web.Response:
        """GET /internal/v1/pipelines/{name}/graph."""
        query = parse_query(GraphQuery, request.query.items())
        rules, name = self.definitions.current, request.match_info["name"]
        phases = rules.definitions.plan(name)
        of_batch = {}
        if query.batch is not None:
            request[BATCH_ID] = query.batch
            async with self.reading:
                summary, _ = await self.reader.summary(query.batch, rules.law)
            if summary.unknown:
                raise unknown_batch()
            of_batch = standings_of(resolve(rules.definitions, name, summary))
        write, content_type = _WRITERS[query.format]
        return reply_encoded(write(phases, of_batch).encode(), content_type=content_type)

    @serves(
        Route(
            method="POST",
            path=f"{PIPELINES}/reload",
            name="reloadPipelines",
            group=Group.PIPELINES,
            summary="Read the pipeline file again, and use it if it is valid",
            answers={HTTPStatus.OK: definition_answers.DefinitionsReloaded},
            problems=("definitions-refused",),
            scope=Scope.OPERATE,
            leads_to={"listPipelines": {}},
        )
    )
    async def reload(self, request: web.Request) -> web.Response:
        """POST /internal/v1/pipelines/reload."""
        found = await self.definitions.reload(asked_by(request))
        answer: definition_answers.DefinitionsReloaded = {
            "status": "unchanged" if found.same_content and found.before == found.after else "reloaded",
            "definitions": definitions_version(found.after),
            "before": definitions_version(found.before),
            **difference_document(found),
        }
        return reply_json(answer)
