"""The table of docs/refusals.md, each row of which `test_refusals.py` plays: `python -m tests.refusals.table`."""

from __future__ import annotations

from tests.refusals.ways import WAYS

HEAD = """\
| dependency | refuses by | `define` meanwhile | `/healthz` says | log event | facts lost | dead letters |
|---|---|---|---|---|---|---|"""


def table() -> str:
    """The table, without a newline at its end."""
    return "\n".join([HEAD, *(way.row for way in WAYS)])


if __name__ == "__main__":
    print(table())  # noqa: T201
