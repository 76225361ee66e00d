"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web

from bcs.actors.http.descriptors import USED_UP
from bcs.actors.http.replies import reply_json
from bcs.contracts.http import InvalidField
from bcs.domain.errors import (
    ClocksDiffer,
    PromptRequired,
    ReportOutdated,
    StoreError,
    StoreUnavailable,
    UnknownPipeline,
)
from bcs.domain.times import format_timestamp
from bcs.supervision import SupervisionError


class Problem(Exception):
    """A request that gets an error for an answer.

    :param status: the HTTP status.
    :param kind: a short name, which ends the problem's `type`.
    :param detail: what is wrong, for a person; never the caller's own text.
    :param extensions: further members.
    :param retry: whether the caller may try again soon.
    """

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        extensions: Mapping[str, Any] | None = None,
        *,
        retry: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.extensions = dict(extensions or {})
        self.retry = retry

    def response(self, correlation_id: str, retry_after_seconds: int) -> web.Response:
        """The answer."""
        document = {
            "type": f"urn:bcs:problem:{self.kind}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "correlation_id": correlation_id,
            **self.extensions,
        }
        headers = {"Retry-After": str(retry_after_seconds)} if self.retry else None
        return reply_json(document, self.status, content_type="application/problem+json", headers=headers)


def overloaded(detail: str) -> Problem:
    """503 for what there is no room for at the moment."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", detail, retry=True)


def invalid_fields(problems: Sequence[InvalidField]) -> Problem:
    """400 that names each field."""
    named = ", ".join(problem.field for problem in problems)
    errors = [{"field": problem.field, "problem": problem.problem} for problem in problems]
    return Problem(HTTPStatus.BAD_REQUEST, "invalid-request", f"not valid: {named}", {"errors": errors})


def problem_of(error: Exception) -> Problem | None:
    """The problem that one of our own errors is to a caller; None when it is a fault of ours."""
    if isinstance(error, UnknownPipeline):
        return Problem(HTTPStatus.NOT_FOUND, "unknown-pipeline", str(error), {"known_pipelines": list(error.known)})
    if isinstance(error, PromptRequired):
        return Problem(
            HTTPStatus.CONFLICT, "prompt-required", str(error), {"phases_needing_prompt": list(error.phases)}
        )
    if isinstance(error, ReportOutdated):
        fact = {"fact": error.fact, "essay_id": error.essay_id, "at": format_timestamp(error.at_us)}
        return Problem(HTTPStatus.CONFLICT, "report-outdated", str(error), {"phase": error.phase, "in_the_way": fact})
    if isinstance(error, OSError) and error.errno in USED_UP:
        return overloaded("too many files are open")
    if isinstance(error, StoreUnavailable):
        # Without the cause, which names addresses; the log and /healthz have it.
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", f"{error.store} is out of reach", retry=True)
    if isinstance(error, StoreError | SupervisionError | ClocksDiffer) and error.retryable:
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error), retry=True)
    return None


def from_aiohttp(error: web.HTTPException) -> Problem:
    """The problem for what aiohttp itself refuses."""
    status = HTTPStatus(error.status)
    # Not from the phrase: that one changes between versions of Python.
    kind, detail = {
        404: ("not-found", "there is nothing at this path"),
        405: ("method-not-allowed", ""),
        413: ("content-too-large", "the request body is too large"),
    }.get(error.status, (f"http-{error.status}", status.description))
    problem = Problem(status, kind, detail)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        problem.detail = f"only {', '.join(allowed)} is possible here"
        problem.extensions["allowed_methods"] = allowed
    return problem
