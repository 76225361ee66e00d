"""Turns the events of the supervision tree into logs and metrics."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from bcs.observability.telemetry import Telemetry
from bcs.supervision import Snapshot

log = structlog.stdlib.get_logger("bcs.supervision")

_OF_ALL_CHILDREN = "*"
_EXPECTED_ENDS = frozenset({"returned", "stopped", "cancelled"})


class TreeObserver:
    """An observer of the tree. Batch ids go into the log, never into labels.

    :param gave_up: called when the root supervisor gives up.
    """

    def __init__(self, telemetry: Telemetry, gave_up: Callable[[], None]) -> None:
        self._telemetry = telemetry
        self._gave_up = gave_up

    def actor_started(self, path: str, incarnation: int) -> None:
        """See `Observer`."""
        if "/" not in path:
            log.debug("actor_started", actor=path, incarnation=incarnation)

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        """See `Observer`."""
        if reason not in _EXPECTED_ENDS:
            log.warning("actor_failed", actor=path, incarnation=incarnation, reason=reason, exc_info=error)

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        """See `Observer`."""
        self._telemetry.actor_restarts.labels(_label(path)).inc()
        log.info("actor_restarting", actor=path, delay_seconds=round(delay_seconds, 3))

    def actor_unresponsive(self, path: str) -> None:
        """See `Observer`."""
        log.critical("actor_unresponsive", actor=path)

    def intensity_exceeded(self, path: str) -> None:
        """See `Observer`."""
        log.critical("restart_intensity_exceeded", supervisor=path or "bcs")
        if not path:
            self._gave_up()


def count_restarts_from_zero(telemetry: Telemetry, tree: Snapshot) -> None:
    """Start a restart counter at zero for each actor, because an alert does not notice a new series with the value 1.

    :param tree: the tree before its start.
    """
    for path, node in tree.iter_flat():
        telemetry.actor_restarts.labels(path)
        if node.kind == "dynamic":
            telemetry.actor_restarts.labels(_label(f"{path}/{_OF_ALL_CHILDREN}"))


def _label(path: str) -> str:
    name, _, below = path.partition("/")
    return f"{name}/{_OF_ALL_CHILDREN}" if below else name
