"""The floor that the service is measured against: aiohttp and uvloop, a JSON body in, a JSON body out, nothing else.

``python -m benchmarks.floor PORT``
"""

from __future__ import annotations

import json
import sys

import uvloop
from aiohttp import web


async def _answer(request: web.Request) -> web.Response:
    body = json.loads(await request.read())
    return web.json_response({"batch_id": body["batch_id"], "final_pipeline": [], "analysis_summary": ""})


def main() -> None:
    """Serve until ended."""
    application = web.Application()
    application.router.add_post("/internal/v1/pipelines/define", _answer)
    web.run_app(
        application, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop()
    )


if __name__ == "__main__":
    main()
