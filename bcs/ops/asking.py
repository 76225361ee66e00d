"""Sends requests to a running service over HTTP. Each error is one readable line."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bcs.errors import BcsError, os_reason
from bcs.ops.credentials import authorization, tls_context
from bcs.ops.operators import user_agent
from bcs.ops.wording import printable
from bcs.runtime import running

# The timeout of the orchestrator, which is the usual caller. The service itself answers sooner.
_TIMEOUT_SECONDS = 30.0
# The lines come one after the other, and each of them in time.
_LINES_TIMEOUT_SECONDS = 120.0
_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024


_ADVICE: Mapping[int, Sequence[str]] = {401: ("set BCS_TOKEN_FILE to a file with a token of this service",)}


class ServiceUnreachable(BcsError):
    """The service did not respond.

    :param url: the URL of the request.
    :param cause: the reason, in a few words.
    :param late: True if a process may listen there, but did not answer in time.
    """

    retryable = True

    def __init__(self, url: str, cause: str, *, late: bool = False) -> None:
        super().__init__(f"no answer from {url}: {cause}")
        self.url = url
        self.cause = cause
        self.late = late


class NotThisService(BcsError):
    """The response is not from BCS.

    :param url: the URL of the request.
    """

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url} answered {status}, but not like BCS: is the address right?")
        self.url = url
        self.status = status


class RequestFailed(BcsError):
    """The service answered with a problem (RFC 9457).

    :param status: the HTTP status.
    :param problem: the document.
    :param retry_after: the `Retry-After` header; None if there is none.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: str | None) -> None:
        parts = [f"{status} {_phrase(status)}: {problem.get('detail')}"]
        parts += [f"{error['field']}: {error['problem']}" for error in problem.get("errors", ())]
        parts += [*problem.get("problems", ()), *problem.get("warnings", ())]
        parts += _ADVICE.get(status, ())
        parts += [f"try again in {retry_after} s"] if retry_after else []
        parts += [f"correlation id {problem['correlation_id']}"] if "correlation_id" in problem else []
        super().__init__(printable("; ".join(parts)))
        self.status = status
        self.problem = problem
        self.retry_after = retry_after


def ask(
    url: str,
    body: Mapping[str, Any] | None = None,
    *,
    expecting: Collection[str],
    timeout_seconds: float = _TIMEOUT_SECONDS,
    method: str | None = None,
) -> dict[str, Any]:
    """GET a document, or POST a document and return the response.

    :param method: another method.
    :param body: the document to POST; None for a GET.
    :param expecting: the members that every response of BCS has, for any status.
    :raises ServiceUnreachable: the service did not respond.
    :raises RequestFailed: the service refused the request.
    :raises NotThisService: the response is not from BCS.
    """
    status, raw = _answer(url, body, expecting, timeout_seconds, method)
    document = _document(raw)
    if not document.keys() >= set(expecting):
        raise NotThisService(url, status)
    return document


def ask_lines(
    url: str, body: Mapping[str, Any], *, expecting: Collection[str], timeout_seconds: float = _LINES_TIMEOUT_SECONDS
) -> tuple[list[bytes], dict[str, Any]]:
    """POST a document, and return the lines of the response, and the document in the last one.

    :param expecting: the members that the last line of every complete response has.
    :raises RequestFailed: the service refused the request, or could not answer it to its end.
    :raises BcsError: as `ask`.
    """
    status, raw = _answer(url, body, expecting, timeout_seconds)
    *lines, last = raw.splitlines() or [b""]
    document = _document(last)
    if document.keys() >= set(expecting):
        return lines, document
    problem = document.get("problem")
    if "batch_id" not in document and isinstance(problem, dict) and isinstance(problem.get("status"), int):
        raise RequestFailed(problem["status"], problem, None)
    raise NotThisService(url, status)


def _answer(
    url: str,
    body: Mapping[str, Any] | None,
    expecting: Collection[str],
    timeout_seconds: float,
    method: str | None = None,
) -> tuple[int, bytes]:
    """The status and the body of the response."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": user_agent()}
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 (options check it)
    for name, value in authorization().items():
        request.add_unredirected_header(name, value)  # a redirect must not carry the token elsewhere
    # Without a proxy, because the service is on this machine or network, and a proxy would search for it outside.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=tls_context()))
    opener = urllib.request.build_opener(*handlers)

    def answer() -> tuple[int, bytes]:
        with opener.open(request, timeout=timeout_seconds) as response:
            return response.status, response.read(_LONGEST_ANSWER_BYTES)

    try:
        # The timeout of a socket does not limit the lookup of its host name.
        return running.call_with_timeout(answer, timeout_seconds)
    except TimeoutError:
        raise ServiceUnreachable(url, f"nothing in {timeout_seconds:.0f} s", late=True) from None
    except urllib.error.HTTPError as error:
        with error:
            raw = error.read(_LONGEST_ANSWER_BYTES)
        problem = _document(raw)
        if problem.keys() >= set(expecting):
            return error.code, raw
        if not str(problem.get("type")).startswith("urn:bcs:problem:"):
            raise NotThisService(url, error.code) from None
        raise RequestFailed(error.code, problem, error.headers.get("Retry-After")) from None
    except urllib.error.URLError as error:
        raise ServiceUnreachable(url, _cause(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnreachable(url, _cause(error)) from None


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "")


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _cause(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"the certificate of the service is not trusted: {reason.verify_message} (BCS_COMMAND_CAFILE)"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection was lost in the middle of the answer"
    if isinstance(reason, OSError):
        return os_reason(reason) or type(reason).__name__
    return str(reason) or type(reason).__name__
