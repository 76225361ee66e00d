"""The page `/docs`: the description of the API for people to read, and to try the calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import anyio.to_thread
from aiohttp import web

from bcs.http.page_files import PageFile, response_of
from bcs.http.problems import Problem
from bcs.http.routing import Group, Route, serves

DOCS: Final = "/docs"


@dataclass(frozen=True, slots=True)
class DocumentationHandlers:
    """The handlers of the page.

    :param files: reads the files, by their names; the page itself has an empty name. None without the extra `docs`.
    """

    files: Callable[[], Mapping[str, PageFile] | None]

    # The files have no secret, and a browser can't send a token for them. The description needs one.
    @serves(
        Route(
            method="GET",
            path=DOCS,
            name="showDocs",
            group=Group.DESCRIPTION,
            summary="A page that shows this document; 404 with `BCS_DOCS=false`, and without the extra `docs`",
            answers={HTTPStatus.OK: "text/html"},
            problems=("not-found",),
            public=True,
        )
    )
    async def page(self, request: web.Request) -> web.Response:
        """GET /docs."""
        return await self._file("", request)

    @serves(
        Route(
            method="GET",
            path=f"{DOCS}/{{file}}",
            name="showDocsFile",
            group=Group.DESCRIPTION,
            summary="A file of that page",
            answers={HTTPStatus.OK: ("text/javascript", "text/css")},
            problems=("not-found",),
            public=True,
            path_parameters={"file": {"type": "string", "minLength": 1, "examples": ["docs.js"]}},
        )
    )
    async def file(self, request: web.Request) -> web.Response:
        """GET /docs/{file}."""
        return await self._file(request.match_info["file"], request)

    async def _file(self, name: str, request: web.Request) -> web.Response:
        # Megabytes are read the first time, which would hold up the event loop.
        files = await anyio.to_thread.run_sync(self.files)
        if files is None:
            raise Problem("not-found", "the page needs the extra: pip install 'batch-conductor-service[docs]'")
        return response_of(files, name, request)
