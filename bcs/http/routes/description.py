"""The description of the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import anyio.to_thread
from aiohttp import web

from bcs.http.replies import reply_encoded
from bcs.http.routing import Group, Route, serves

OPENAPI = "/openapi.json"


@dataclass(frozen=True, slots=True)
class DescriptionHandlers:
    """The handlers of the description's routes.

    :param openapi: makes the OpenAPI document as JSON, the first time in a tenth of a second.
    """

    openapi: Callable[[], bytes]

    @serves(
        Route(
            method="GET",
            path=OPENAPI,
            name="describeApi",
            group=Group.DESCRIPTION,
            summary="This document",
            answers={HTTPStatus.OK: dict[str, Any]},
        )
    )
    async def describe(self, _: web.Request) -> web.Response:
        """GET /openapi.json."""
        # The first request makes the document, which would hold up the event loop.
        return reply_encoded(await anyio.to_thread.run_sync(self.openapi))
