"""The files of the pages `/ui` and `/docs`, sent with headers that let the browser run these files and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web

from bcs.http.replies import JsonResponse

_UI, _DOCS = Path(__file__).parent / "ui", Path(__file__).parent / "docs"
_OF_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
_FIRST = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Data of batches comes from outside. Even if the page had a fault, no text of it could become a script, a style, a
# request to another host, or a form; and no other page may show this one in a frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# Swagger UI makes its elements from HTML, and has pictures in its style sheet. It shows no data but the description.
_POLICY_OF_DOCS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: dict[str, str] = {
    # The browser asks each time whether the file has changed, so that a page never has parts of two releases.
    hdrs.CACHE_CONTROL: "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page.

    :param headers: with the type and the version of the file.
    """

    body: bytes
    headers: Mapping[str, str]


def response_of(files: Mapping[str, PageFile], name: str, request: web.Request) -> web.Response:
    """The file with a name, or 304 if the caller has it already.

    :raises HTTPNotFound: there is no such file.
    """
    file = files.get(name)
    if file is None:
        raise web.HTTPNotFound
    if request.headers.get(hdrs.IF_NONE_MATCH) == file.headers[hdrs.ETAG]:
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=file.headers)
    return JsonResponse(HTTPStatus.OK, file.body, file.headers)


@cache
def page_files() -> Mapping[str, PageFile]:
    """The files of `/ui`, by their names; the page itself has an empty name."""
    return _read(_UI.iterdir(), _POLICY)


@cache
def documentation_files() -> Mapping[str, PageFile] | None:
    """The files of `/docs`, in the same way; None if Swagger UI is not installed."""
    try:
        from swagger_ui_bundle import swagger_ui_path
    except ImportError:
        return None
    return _read([*_DOCS.iterdir(), *(swagger_ui_path / name for name in _OF_SWAGGER_UI)], _POLICY_OF_DOCS)


def _read(paths: Iterable[Path], policy: str) -> Mapping[str, PageFile]:
    files: dict[str, PageFile] = {}
    for file in sorted(paths):
        if file.suffix in _TYPES:
            body = file.read_bytes()
            own: dict[str, str] = {
                hdrs.CONTENT_TYPE: _TYPES[file.suffix],
                hdrs.ETAG: f'"{sha256(body).hexdigest()[:16]}"',
            }
            name = "" if file.name == _FIRST else file.name
            files[name] = PageFile(body, {**_HEADERS, "Content-Security-Policy": policy, **own})
    return files
