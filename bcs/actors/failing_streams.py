"""Notes the streams that can't be used while others can, for the log, `/healthz` and the metrics."""

from __future__ import annotations

from collections.abc import Mapping

from bcs.errors import StoreUnavailable
from bcs.observability.waits import Waits

_ACCESS = "access the key "


def note_failing(waits: Waits, actor: str, failing: Mapping[str, StoreUnavailable]) -> None:
    """Begin the waits for streams that fail, and end those for streams that can be used again.

    :param actor: the actor's name.
    :param failing: the keys of all streams that fail now, each with the reason.
    """
    for wait in waits.of(actor):
        key = wait.doing.removeprefix(_ACCESS)
        if key != wait.doing and key not in failing:
            waits.end(actor, wait.doing)
    for key, error in failing.items():
        waits.begin(actor, f"{_ACCESS}{key}", str(error))
