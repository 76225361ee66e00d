"""Writes docs/asyncapi.json: `python -m tests.support.asyncapi_file`."""

import json
from pathlib import Path

from bcs.wire.asyncapi import asyncapi_document

FILE = Path(__file__).parents[2] / "docs/asyncapi.json"


def current() -> str:
    """The description of the topics, as `bcs events schema --asyncapi` prints it."""
    return json.dumps(asyncapi_document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(current())
