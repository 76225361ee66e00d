"""The lines of a plan for many batches: a JSON document for each batch, and the totals in the last line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic_core import to_json

from bcs.domain.resolution import Resolution
from bcs.domain.slices import Sliced, in_slices
from bcs.errors import BcsError
from bcs.http.documents import definitions_version
from bcs.http.explanations import as_of
from bcs.http.found_batches import encode_cursor
from bcs.http.plan_answers import PlannedBatch, SelectedPage
from bcs.http.problems import fault, problem_of
from bcs.storage.pace import paced
from bcs.usecases.plan_pipelines import Plan, Planned, essays_of

_BEFORE = len('{"batch_id":""')


@dataclass(slots=True)
class PlanLines:
    """The lines of a plan that is being made.

    :param warnings: about unknown fields of the request.
    """

    plan: Plan
    warnings: Sequence[str]
    ended: bool = field(default=False, init=False)

    async def more(self) -> bytes:
        """See `Lines.more`."""
        planned = await self.plan.portion()
        lines = await paced(_encoding(planned))
        self.ended = self.plan.ended
        return lines + self._last() if self.ended else lines

    def failed(self, problem: dict[str, Any]) -> bytes:
        """See `Lines.failed`."""
        document: dict[str, Any] = {"problem": problem}
        if self.plan.selected:
            document["selection"] = self._selection()
        return to_json(document) + b"\n"

    def _last(self) -> bytes:
        plan = self.plan
        document: dict[str, Any] = {"totals": {"pipeline": plan.pipeline, **asdict(plan.totals)}}
        if plan.selected:
            document["selection"] = self._selection()
        if given := plan.options.given():
            document["options"] = given
        if self.warnings:
            document["warnings"] = self.warnings
        document["definitions"] = definitions_version(plan.definitions.identity)
        document["as_of"] = as_of(plan.lag)
        return to_json(document) + b"\n"

    def _selection(self) -> SelectedPage | None:
        selected = self.plan.selected
        if selected is None:
            return None
        following = None if selected.following is None else encode_cursor(selected.following)
        return {"source": selected.source, "scanned": selected.scanned, "next_cursor": following}


def _encoding(plans: Sequence[Planned]) -> Sliced[bytes]:
    """Lines, encoded in slices."""
    # Batches with equal states have the same resolution.
    kept: dict[tuple[int, str, bool], bytes] = {}
    lines: list[bytes] = []
    for some in in_slices(plans):
        for planned in some:
            if planned.resolution is None:
                document = {"batch_id": planned.batch_id, "problem": _problem(planned.error)}
                lines.append(b"%b\n" % to_json(document))
                continue
            key = id(planned.resolution), planned.source, planned.known
            if key not in kept:
                kept[key] = to_json(_line(planned.resolution, planned.source, known=planned.known))[_BEFORE:]
            lines.append(b'{"batch_id":%b%b\n' % (to_json(planned.batch_id), kept[key]))
        yield
    return b"".join(lines)


def _line(resolution: Resolution, source: str, *, known: bool) -> PlannedBatch:
    essays = essays_of(resolution)
    return {
        "batch_id": "",
        "final_pipeline": resolution.to_run,
        "pruned_phases": resolution.pruned,
        "left_out_phases": resolution.left_out,
        "reasons": {decision.phase: decision.reason for decision in resolution.decisions},
        "outstanding": {
            decision.phase: essays - decision.completed for decision in resolution.decisions if decision.runs
        },
        "known": known,
        "registered": resolution.registered,
        "essays_known": resolution.known,
        "essays_expected": resolution.expected,
        "source": source,
    }


def _problem(error: BcsError | None) -> dict[str, Any]:
    problem = (error and problem_of(error)) or fault()
    return {
        "type": f"urn:bcs:problem:{problem.kind}",
        "status": problem.status,
        "detail": problem.detail,
        **problem.extensions,
    }
