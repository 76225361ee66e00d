"""The page `/ui`: its files, and its stream of what runs and what flows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from pydantic_core import to_json

from bcs import __version__
from bcs.config.settings import Settings
from bcs.http.access import Access
from bcs.http.identity import Scope, identity_of
from bcs.http.live_feed import INTERVAL_SECONDS, LiveFeed, LiveStream
from bcs.http.page_files import PageFile, response_of
from bcs.http.problems import overloaded
from bcs.http.replies import JsonResponse
from bcs.http.routing import Group, Route, serves

UI: Final = "/ui"
UI_EVENTS: Final = "/internal/v1/ui/events"
EVENT_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class UiHandlers:
    """The handlers of the page.

    :param files: by their names; the page itself has an empty name.
    :param access: the callers; None if everybody may do everything.
    :param has_archive: True if there are histories.
    :param process: the id of this process; pages that see another one begin anew to count.
    """

    settings: Settings
    files: Mapping[str, PageFile]
    feed: LiveFeed
    access: Access | None
    has_archive: bool
    process: str

    # The files have no secret, and a browser can't send a token for them. All data needs one.
    @serves(
        Route(
            method="GET",
            path=UI,
            name="showPage",
            group=Group.PAGE,
            summary="The page",
            answers={HTTPStatus.OK: "text/html"},
            problems=("not-found",),
            public=True,
        )
    )
    async def page(self, request: web.Request) -> web.Response:
        """GET /ui."""
        return response_of(self.files, "", request)

    @serves(
        Route(
            method="GET",
            path=f"{UI}/{{file}}",
            name="showPageFile",
            group=Group.PAGE,
            summary="A file of the page",
            answers={HTTPStatus.OK: ("text/javascript", "text/css", "image/svg+xml")},
            problems=("not-found",),
            public=True,
            path_parameters={"file": {"type": "string", "minLength": 1, "examples": ["page.js"]}},
        )
    )
    async def file(self, request: web.Request) -> web.Response:
        """GET /ui/{file}.

        :raises HTTPNotFound: the page has no such file.
        """
        return response_of(self.files, request.match_info["file"], request)

    @serves(
        Route(
            method="GET",
            path=UI_EVENTS,
            name="followService",
            group=Group.PAGE,
            summary="Follow the service by server-sent events: `hello`, a `snapshot` each second, and `end`",
            answers={HTTPStatus.OK: EVENT_STREAM},
            problems=("not-found",),
            scope=Scope.READ,
        )
    )
    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /internal/v1/ui/events."""
        if request.method == "HEAD":
            return JsonResponse(HTTPStatus.OK, b"", {hdrs.CONTENT_TYPE: EVENT_STREAM})
        if self.feed.full:
            raise overloaded("too many open pages at a time (BCS_UI_MAX_STREAMS)")
        return LiveStream(
            self.feed,
            hello=self._hello(request),
            # A token may be removed while its stream is open.
            admitted=lambda: self.access is None or self.access.admits(Scope.READ, request),
            send_seconds=self.settings.http_send_seconds,
        )

    def _hello(self, request: web.Request) -> str:
        caller, settings = identity_of(request), self.settings
        document = {
            "process": self.process,
            "version": __version__,
            "instance": settings.instance,
            "environment": settings.environment,
            "callers_known": settings.knows_callers,
            "caller": caller.name,
            "scopes": sorted(caller.scopes),
            "archive": self.has_archive,
            "kills": settings.chaos_enabled,
            "interval_seconds": INTERVAL_SECONDS,
        }
        return to_json(document).decode()
