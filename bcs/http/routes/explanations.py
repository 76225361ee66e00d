"""The explanation of a pipeline for a batch, without any effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from aiohttp import web

from bcs.domain.resolve_options import PLAIN
from bcs.http.documents import extent_of
from bcs.http.explanations import answer_with_options, encoding_explained
from bcs.http.parameters import ExplainQuery, explained_essays_path, parse_query, parse_segment
from bcs.http.replies import reply_encoded
from bcs.http.routes.batches import batch_id_of
from bcs.storage.pace import paced
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.usecases.explain_pipeline import PipelineExplainer

_PIPELINE_SEGMENT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationHandlers:
    """The handler of the route that explains.

    :param page_bytes: the approximate size of a response, for any number of essays.
    """

    definitions: ActiveDefinitions
    explainer: PipelineExplainer
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
