"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from http import HTTPStatus
from math import ceil
from typing import Any, Literal

from aiohttp import web

from bcs.domain.times import format_timestamp
from bcs.errors import (
    BatchErased,
    ClocksDiffer,
    DefinitionsRefused,
    FactInTheFuture,
    IntakeBehind,
    KafkaUnavailable,
    NeededPhasesLeftOut,
    PromptRequired,
    ReportOutdated,
    StoreError,
    StoreUnavailable,
    TooManyNewBatches,
    UnknownPhases,
    UnknownPipeline,
)
from bcs.http.descriptors import USED_UP
from bcs.http.replies import JsonResponse, reply_json
from bcs.http.requests import InvalidBody, InvalidField, InvalidRequest
from bcs.supervision import SupervisionError

Kind = Literal[
    "batch-erased",
    "body-too-late",
    "chaos-disabled",
    "content-too-large",
    "deadline",
    "definitions-refused",
    "draining",
    "expectation-failed",
    "forbidden",
    "head-too-large",
    "head-too-late",
    "http-error",
    "intake-behind",
    "internal",
    "invalid-request",
    "invalidation-outdated",
    "method-not-allowed",
    "needed-phase-left-out",
    "no-archive",
    "not-found",
    "not-running",
    "overloaded",
    "prompt-required",
    "report-outdated",
    "tls-required",
    "too-many-new-batches",
    "too-many-requests",
    "unauthenticated",
    "unavailable",
    "unknown-actor",
    "unknown-batch",
    "unknown-pipeline",
    "unreadable-request",
    "unsupported-media-type",
]


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """What all problems of a kind have in common.

    :param status: the HTTP status.
    :param retry: True if the caller may retry soon.
    """

    status: HTTPStatus
    title: str
    _: KW_ONLY
    retry: bool = False


KINDS: Mapping[Kind, ProblemKind] = {
    "batch-erased": ProblemKind(HTTPStatus.GONE, "The batch was erased"),
    "body-too-late": ProblemKind(HTTPStatus.REQUEST_TIMEOUT, "The request body did not arrive in time", retry=True),
    "chaos-disabled": ProblemKind(HTTPStatus.FORBIDDEN, "Actors may not be killed"),
    "content-too-large": ProblemKind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request body is too large"),
    "deadline": ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "No answer in time", retry=True),
    "definitions-refused": ProblemKind(HTTPStatus.CONFLICT, "The pipeline file can't be used"),
    "draining": ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "The service is stopping", retry=True),
    "expectation-failed": ProblemKind(HTTPStatus.EXPECTATION_FAILED, "The expectation is not supported"),
    "forbidden": ProblemKind(HTTPStatus.FORBIDDEN, "The caller may not do this"),
    "head-too-large": ProblemKind(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large"),
    "head-too-late": ProblemKind(
        HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not arrive in time", retry=True
    ),
    "http-error": ProblemKind(HTTPStatus.BAD_REQUEST, "The request can't be answered"),
    "intake-behind": ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "Too many events wait to be read", retry=True),
    "internal": ProblemKind(HTTPStatus.INTERNAL_SERVER_ERROR, "A fault in this service"),
    "invalid-request": ProblemKind(HTTPStatus.BAD_REQUEST, "A field of the request is invalid"),
    "invalidation-outdated": ProblemKind(HTTPStatus.CONFLICT, "The invalidation is outdated"),
    "method-not-allowed": ProblemKind(HTTPStatus.METHOD_NOT_ALLOWED, "The path does not support this method"),
    "needed-phase-left-out": ProblemKind(HTTPStatus.CONFLICT, "The request leaves out a phase that is needed"),
    "no-archive": ProblemKind(HTTPStatus.NOT_FOUND, "There is no archive"),
    "not-found": ProblemKind(HTTPStatus.NOT_FOUND, "There is nothing at this path"),
    "not-running": ProblemKind(HTTPStatus.CONFLICT, "The actor is not running", retry=True),
    "overloaded": ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "The service is overloaded", retry=True),
    "prompt-required": ProblemKind(HTTPStatus.CONFLICT, "The pipeline needs a prompt"),
    "report-outdated": ProblemKind(HTTPStatus.CONFLICT, "The phase report is outdated"),
    "tls-required": ProblemKind(HTTPStatus.BAD_REQUEST, "The port requires TLS"),
    "too-many-new-batches": ProblemKind(
        HTTPStatus.TOO_MANY_REQUESTS, "Too many requests about unknown batches", retry=True
    ),
    "too-many-requests": ProblemKind(HTTPStatus.TOO_MANY_REQUESTS, "Too many requests of this caller", retry=True),
    "unauthenticated": ProblemKind(HTTPStatus.UNAUTHORIZED, "The caller is not known"),
    "unavailable": ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "A dependency is out of reach or refuses", retry=True),
    "unknown-actor": ProblemKind(HTTPStatus.NOT_FOUND, "The actor is unknown"),
    "unknown-batch": ProblemKind(HTTPStatus.NOT_FOUND, "The batch is unknown"),
    "unknown-pipeline": ProblemKind(HTTPStatus.NOT_FOUND, "The pipeline is unknown"),
    "unreadable-request": ProblemKind(HTTPStatus.BAD_REQUEST, "The request can't be read"),
    "unsupported-media-type": ProblemKind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request body is not JSON"),
}
"""All kinds of problems; `docs/problems.md` explains each. `http-error` stands for what a later aiohttp may refuse: its
status is that of aiohttp."""


class Problem(Exception):
    """A request fails, and the response is a problem document.

    :param kind: a short name; the `type` of the document ends with it. It says the status, and if the caller may retry.
    :param detail: an explanation for a person, which never repeats the text of the caller.
    :param extensions: further members.
    :param challenge: the header `WWW-Authenticate`; empty for none.
    :param wait_seconds: the caller must wait as long before it retries; None for the time in the settings.
    :param status: None for that of the kind.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        extensions: Mapping[str, Any] | None = None,
        *,
        challenge: str = "",
        wait_seconds: float | None = None,
        status: HTTPStatus | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status or KINDS[kind].status
        self.kind = kind
        self.detail = detail
        self.extensions = dict(extensions or {})
        self.challenge = challenge
        self.wait_seconds = wait_seconds

    def document(self, correlation_id: str) -> dict[str, Any]:
        """The problem document."""
        return {
            "type": f"urn:bcs:problem:{self.kind}",
            "title": KINDS[self.kind].title,
            "status": self.status.value,
            "detail": self.detail,
            "correlation_id": correlation_id,
            **self.extensions,
        }

    def response(self, correlation_id: str, retry_after_seconds: int) -> JsonResponse:
        """The response."""
        document = self.document(correlation_id)
        wait_seconds = retry_after_seconds if self.wait_seconds is None else ceil(self.wait_seconds)
        headers = {"Retry-After": str(wait_seconds)} if KINDS[self.kind].retry else {}
        if self.challenge:
            headers["WWW-Authenticate"] = self.challenge
        return reply_json(document, self.status, content_type="application/problem+json", headers=headers)


def overloaded(detail: str) -> Problem:
    """503: the service has no room for the request now."""
    return Problem("overloaded", detail)


def draining() -> Problem:
    """503: the service stops."""
    return Problem("draining", "the service is stopping")


def too_many_requests(wait_seconds: float) -> Problem:
    """429: the caller has used up its rate."""
    return _limited("too-many-requests", "too many requests of this caller", wait_seconds)


def _limited(kind: Kind, detail: str, wait_seconds: float) -> Problem:
    return Problem(kind, detail, wait_seconds=wait_seconds)


def invalid_fields(error: InvalidRequest) -> Problem:
    """400: the response names each invalid field."""
    named = ", ".join(problem.field for problem in error.problems)
    extensions: dict[str, Any] = {
        "errors": [{"field": problem.field, "problem": problem.problem} for problem in error.problems]
    }
    if isinstance(error, InvalidBody) and error.warnings:
        extensions["warnings"] = list(error.warnings)
    return Problem("invalid-request", f"invalid: {named}", extensions)


def unknown_batch() -> Problem:
    """404: nothing is known of the batch."""
    return Problem("unknown-batch", "the batch is unknown: no event named it, or it has expired")


def fault() -> Problem:
    """500: the service has failed."""
    return Problem("internal", "a fault in this service; it has been logged")


def problem_of(error: Exception) -> Problem | None:
    """The problem document for an error; None if the error is a fault of this service."""
    if isinstance(error, UnknownPipeline):
        return Problem("unknown-pipeline", str(error), {"known_pipelines": list(error.known)})
    if isinstance(error, PromptRequired):
        return Problem("prompt-required", str(error), {"phases_needing_prompt": list(error.phases)})
    if isinstance(error, BatchErased):
        erased_at, until = map(format_timestamp, (error.tombstone.at_us, error.tombstone.until_us))
        return Problem("batch-erased", str(error), {"erased_at": erased_at, "refused_until": until})
    if isinstance(error, DefinitionsRefused):
        extensions = {"problems": list(error.problems), "in_use": error.in_use}
        detail = "the pipeline file can't be used, so the definitions in use stay in use"
        return Problem("definitions-refused", detail, extensions)
    if isinstance(error, UnknownPhases):
        expectation = error.expectation(error.known)
        return invalid_fields(InvalidBody((InvalidField(error.option, expectation),)))
    if isinstance(error, NeededPhasesLeftOut):
        needed = [
            {"phase": one.phase, "needed_by": list(one.needed_by), "reason_text": one.reason_text}
            for one in error.needed
        ]
        return Problem("needed-phase-left-out", str(error), {"needed_phases": needed})
    if isinstance(error, IntakeBehind):
        behind = {"events_behind": error.events, "seconds_behind": error.seconds}
        return Problem("intake-behind", str(error), behind)
    if isinstance(error, FactInTheFuture):
        kind: Kind = "report-outdated" if isinstance(error, ReportOutdated) else "invalidation-outdated"
        fact = {"fact": error.fact, "essay_id": error.essay_id, "at": format_timestamp(error.at_us)}
        return Problem(kind, str(error), {"phase": error.phase, "in_the_way": fact})
    if isinstance(error, TooManyNewBatches):
        return _limited("too-many-new-batches", str(error), error.wait_seconds)
    if isinstance(error, OSError) and error.errno in USED_UP:
        return overloaded("too many files are open")
    if isinstance(error, KafkaUnavailable):
        return Problem("unavailable", f"Kafka {'refuses' if error.answered else 'is out of reach'}")
    if isinstance(error, StoreUnavailable):
        # The cause names addresses, so the response omits the cause. The log and /healthz have it.
        state = "refuses" if error.answered else "is out of reach"
        return Problem("unavailable", f"{error.store} {state}")
    if isinstance(error, StoreError | SupervisionError | ClocksDiffer) and error.retryable:
        return Problem("unavailable", str(error))
    return None


_OF_AIOHTTP: Mapping[int, tuple[Kind, str]] = {
    404: ("not-found", "there is nothing at this path"),
    405: ("method-not-allowed", ""),
    413: ("content-too-large", "the request body is too large"),
    417: ("expectation-failed", "the only supported expectation is 100-continue"),
}


def from_aiohttp(error: web.HTTPException) -> Problem:
    """The problem for a request that aiohttp refuses."""
    status = HTTPStatus(error.status)
    kind, detail = _OF_AIOHTTP.get(error.status, ("http-error", status.description))
    problem = Problem(kind, detail, status=status)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        problem.detail = f"this path supports only {', '.join(allowed)}"
        problem.extensions["allowed_methods"] = allowed
    return problem
