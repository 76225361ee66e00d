"""Writes docs/openapi.json: `python -m tests.support.openapi_file`."""

import json
from pathlib import Path

from bcs.http.openapi import openapi_document

FILE = Path(__file__).parents[2] / "docs/openapi.json"


def current() -> str:
    """The description of the API as the service serves it, for people to read."""
    return json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(current())
