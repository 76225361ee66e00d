"""The explanation of a pipeline for a batch, and the plan for many batches; both have no effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from aiohttp import web

from bcs.domain.resolve_options import PLAIN
from bcs.http.documents import extent_of
from bcs.http.explanations import answer_with_options, encoding_explained
from bcs.http.parameters import ExplainQuery, explained_essays_path, parse_query, parse_segment
from bcs.http.plans import NDJSON, encoding_plans
from bcs.http.replies import reply_encoded
from bcs.http.requests import PlanPipelines
from bcs.http.routes.batches import batch_id_of
from bcs.http.routes.pipelines import parsed_body
from bcs.storage.pace import paced
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.explain_pipeline import PipelineExplainer
from bcs.usecases.plan_pipelines import PipelinePlanner, total

_PIPELINE_SEGMENT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationHandlers:
    """The handlers of the routes that explain and plan.

    :param page_bytes: the approximate size of an explanation, for any number of essays.
    """

    definitions: ActiveDefinitions
    explainer: PipelineExplainer
    planner: PipelinePlanner
    page_bytes: int

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

    async def plan(self, request: web.Request) -> web.Response:
        """POST /internal/v1/pipelines/plan."""
        parsed = parsed_body(request, PlanPipelines)
        body = parsed.body
        options, draft = body.options(), body.draft()
        rules = self.definitions.current  # once, because a reload may replace them
        plans = await self.planner.plan(rules, body.batch_ids, body.requested_pipeline, options, draft)
        phases = [phase.name for phase in (draft or rules.definitions).plan(body.requested_pipeline)]
        totals = total(plans, phases)
        lines = await paced(encoding_plans(plans, body.requested_pipeline, totals, options, parsed.warnings))
        return reply_encoded(lines, content_type=NDJSON)
