"""Writes docs/openapi.json: `python -m tests.support.openapi_file`."""

import json
from pathlib import Path

from bcs.http.described import encoded_openapi

FILE = Path(__file__).parents[2] / "docs/openapi.json"


def current() -> str:
    """The description of the API as the service serves it, for people to read."""
    return json.dumps(json.loads(encoded_openapi()), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(current())
