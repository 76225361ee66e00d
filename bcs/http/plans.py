"""Encodes a plan for many batches: a JSON document in each line, the totals in the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from pydantic_core import to_json

from bcs.domain.resolution import Resolution
from bcs.domain.resolve_options import ResolveOptions
from bcs.domain.slices import Sliced, in_slices
from bcs.errors import BcsError
from bcs.http.problems import fault, problem_of
from bcs.usecases.plan_pipelines import Planned, Totals

NDJSON: Final = "application/x-ndjson"

_BEFORE = len('{"batch_id":""')


def encoding_plans(
    plans: Sequence[Planned], pipeline: str, totals: Totals, options: ResolveOptions, warnings: Sequence[str]
) -> Sliced[bytes]:
    """The lines of a plan, encoded in slices."""
    # Batches with equal states have the same resolution.
    kept: dict[tuple[int, str, bool], bytes] = {}
    lines: list[bytes] = []
    for some in in_slices(plans):
        for planned in some:
            if planned.resolution is None:
                document = {"batch_id": planned.batch_id, "problem": _problem(planned.error)}
                lines.append(to_json(document))
                continue
            key = id(planned.resolution), planned.source, planned.known
            if key not in kept:
                kept[key] = to_json(_line(planned.resolution, planned.source, known=planned.known))[_BEFORE:]
            lines.append(b'{"batch_id":%b%b' % (to_json(planned.batch_id), kept[key]))
        yield
    lines.append(to_json(_totals(pipeline, totals, options, warnings)))
    return b"\n".join(lines)


def _line(resolution: Resolution, source: str, *, known: bool) -> dict[str, Any]:
    return {
        "batch_id": "",
        "final_pipeline": resolution.to_run,
        "pruned_phases": resolution.pruned,
        "left_out_phases": resolution.left_out,
        "reasons": {decision.phase: decision.reason for decision in resolution.decisions},
        "known": known,
        "registered": resolution.registered,
        "essays_known": resolution.known,
        "essays_expected": resolution.expected,
        "source": source,
    }


def _totals(pipeline: str, totals: Totals, options: ResolveOptions, warnings: Sequence[str]) -> dict[str, Any]:
    document: dict[str, Any] = {"totals": {"pipeline": pipeline, **asdict(totals)}}
    if given := options.given():
        document["options"] = given
    if warnings:
        document["warnings"] = warnings
    return document


def _problem(error: BcsError | None) -> dict[str, Any]:
    problem = (error and problem_of(error)) or fault()
    return {
        "type": f"urn:bcs:problem:{problem.kind}",
        "status": problem.status,
        "detail": problem.detail,
        **problem.extensions,
    }
