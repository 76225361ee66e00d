"""Reading the body of a request: what goes wrong with it is the caller's fault, or nobody's."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from bcs.actors.http.problems import Problem


class CallerLeft(Exception):
    """The connection was lost before the whole body had come: nobody waits for an answer."""


async def read_body(request: web.Request) -> bytes:
    """The whole body of a request.

    :raises Problem: the bytes are not in the encoding that the headers name.
    :raises HTTPRequestEntityTooLarge: the body, decompressed, is larger than allowed.
    :raises CallerLeft: the connection was lost.
    """
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise unreadable() from error
    except OSError as error:
        # aiohttp raises what the connection was lost with, which may be any error of a socket.
        raise CallerLeft from error


def unreadable() -> Problem:
    """400 for bytes that are no HTTP, or not in the encoding that the headers name."""
    detail = "the request can't be read: it is not HTTP, or its body is not in the encoding that its headers name"
    return Problem(HTTPStatus.BAD_REQUEST, "unreadable-request", detail)
