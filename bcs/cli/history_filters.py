"""The options that say which entries of the history are wanted, and how many."""

from __future__ import annotations

from typing import Annotated

import typer

from bcs.domain.history_filter import HistoryFilter
from bcs.http.parameters import HIGHEST_NUMBER, MOST_ENTRIES, HistoryQuery, parse_query

EntryType = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="Only entries of this type: facts, resolution, erasure, or an event type such as PhaseReported.",
        show_default=False,
    ),
]


EntryLimit = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, max=MOST_ENTRIES, help="How many entries at most.")
]
Before = Annotated[
    int | None,
    typer.Option(
        "--before",
        metavar="NUMBER",
        min=1,
        help="Only entries with lower numbers. [default: begin with the newest]",
        show_default=False,
    ),
]


def below(before: int | None) -> int | None:
    """The number below which entries are wanted: no archive has a higher one than PostgreSQL can count."""
    return None if before is None else min(before, HIGHEST_NUMBER)


def history_filter(
    *, since: str | None, until: str | None, correlation_id: str | None, entry_type: str | None
) -> HistoryFilter:
    """The filter that these options describe.

    :raises InvalidParameters: one of them is invalid.
    """
    given = {"since": since, "until": until, "correlation_id": correlation_id, "type": entry_type}
    return parse_query(HistoryQuery, [(name, value) for name, value in given.items() if value is not None]).filter
