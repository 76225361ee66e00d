"""The explanation of a pipeline for a batch, and the plan for many batches; both have no effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus

from aiohttp import web
from pydantic import TypeAdapter

from bcs.domain.resolve_options import PLAIN
from bcs.domain.times import microseconds
from bcs.http.documents import extent_of
from bcs.http.explanation_answers import ResolvedWithOptions
from bcs.http.explanations import answer_with_options, encoding_explained
from bcs.http.identity import Scope
from bcs.http.lines import NDJSON, LinesResponse
from bcs.http.parameters import BATCHES, PIPELINES, ExplainQuery, explained_essays_path, parse_query, parse_segment
from bcs.http.plan_answers import PlanBroken, PlanEnd, PlannedBatch, UnplannedBatch
from bcs.http.plan_requests import PlanPipelines
from bcs.http.plans import PlanLines
from bcs.http.replies import reply_encoded
from bcs.http.requests import DEFINITIONS_HEADER
from bcs.http.routes.batches import batch_id_of
from bcs.http.routes.pipelines import DEFINITIONS_ANSWERED, parsed_body
from bcs.http.routing import BATCH_ID_PARAMETER, OF_PATH, Group, Route, serves
from bcs.storage.pace import paced
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.explain_pipeline import PipelineExplainer
from bcs.usecases.plan_pipelines import PipelinePlanner, PlanPipeline
from bcs.wire.events import Identifier

_PIPELINE_SEGMENT = 6
_PIPELINE = TypeAdapter(Identifier).json_schema() | {
    "description": "A phase or a pipeline of the configuration, percent-encoded."
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationHandlers:
    """The handlers of the routes that explain and plan.

    :param page_bytes: the approximate size of an explanation, for any number of essays.
    :param now: wall-clock time.
    """

    definitions: ActiveDefinitions
    explainer: PipelineExplainer
    planner: PipelinePlanner
    page_bytes: int
    now: Callable[[], datetime]

    @serves(
        Route(
            method="GET",
            path=f"{BATCHES}/{{id}}/explain/{{pipeline}}",
            name="explainPipeline",
            group=Group.PIPELINES,
            summary="Explain which phases of a pipeline a batch still needs, without any effect",
            answers={HTTPStatus.OK: ResolvedWithOptions},
            problems=("unknown-pipeline", "batch-erased", "unavailable"),
            scope=Scope.READ,
            query=ExplainQuery,
            path_parameters={**BATCH_ID_PARAMETER, "pipeline": _PIPELINE},
            leads_to={"showBatch": OF_PATH, "showHistory": OF_PATH},
        )
    )
    async def explain(self, request: web.Request) -> web.Response:
        """GET /internal/v1/batches/{id}/explain/{pipeline}."""
        batch_id = batch_id_of(request)
        segment = request.rel_url.raw_path.split("/")[_PIPELINE_SEGMENT]
        pipeline = parse_segment(segment.encode(errors="surrogateescape"), "pipeline")
        query = parse_query(ExplainQuery, request.query.items())
        definitions = self.definitions.current.definitions
        phases = len(definitions.plan(pipeline))
        explanation = await self.explainer.explain(definitions, batch_id, pipeline, PLAIN)
        answer = answer_with_options(batch_id, explanation.resolution, explanation.source, options=PLAIN, dry_run=True)
        extent, next_after = None, None
        if query.explain == "full":
            extent = extent_of(query.after, query.limit, page_bytes=self.page_bytes, phases=phases)
            next_after = partial(explained_essays_path, batch_id, pipeline, query.limit)
        return reply_encoded(await paced(encoding_explained(answer, explanation, extent, next_after)))

    @serves(
        Route(
            method="POST",
            path=f"{PIPELINES}/plan",
            name="planPipelines",
            group=Group.PIPELINES,
            summary="Say which phases of a pipeline many batches would still need, without any effect: a line for each",
            answers={HTTPStatus.OK: NDJSON},
            lines=(PlannedBatch, UnplannedBatch, PlanEnd, PlanBroken),
            problems=("unknown-pipeline", "unavailable"),
            scope=Scope.READ,
            body=PlanPipelines,
            answer_headers=DEFINITIONS_ANSWERED,
        )
    )
    async def plan(self, request: web.Request) -> web.StreamResponse:
        """POST /internal/v1/pipelines/plan."""
        parsed = parsed_body(request, PlanPipelines)
        body = parsed.body
        rules = self.definitions.current  # once, because a reload may replace them
        command = PlanPipeline(
            batches=body.batches(rules.definitions, microseconds(self.now())),
            pipeline=body.requested_pipeline,
            options=body.options(),
            draft=body.draft(),
        )
        plan = self.planner.begin(rules, command)
        headers = {DEFINITIONS_HEADER: str(plan.definitions.identity)}
        response = LinesResponse(PlanLines(plan, parsed.warnings), headers)
        await response.begin()
        return response
