"""The tables of docs/refusals.md and docs/operations.md. `test_refusals.py` plays each row. Printed by
`python -m tests.refusals.table`, and the short one by `python -m tests.refusals.table short`.
"""

from __future__ import annotations

import sys

from tests.refusals.ways import WAYS

HEAD = """\
| dependency | refuses by | `define` meanwhile | `/healthz` says | metrics say | log event | `bcs doctor` says |
|---|---|---|---|---|---|---|"""


# Stopped, frozen, and refusing by rights.
_SHORT = ("gone", "silent", "rights: ")


def table(*, short: bool = False) -> str:
    """The table, without a newline at its end.

    :param short: only what happens most.
    """
    return "\n".join([HEAD, *(way.row for way in WAYS if not short or way.refuses.startswith(_SHORT))])


if __name__ == "__main__":
    print(table(short="short" in sys.argv[1:]))  # noqa: T201
