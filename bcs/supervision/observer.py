"""What happens in a tree, told to whoever keeps logs and metrics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Called synchronously, on the event loop: be quick. What it raises is logged and otherwise ignored.

    A path is the names from below the root, joined by "/", like "batches/router"; the root's own path is "". A child
    of a dynamic supervisor is started and retired with every burst of messages, and is reported each time.
    """

    def actor_started(self, path: str, incarnation: int) -> None:
        """An attempt begins.

        :param path: of the actor
        :param incarnation: 1 for its first attempt
        """

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        """An attempt ended.

        :param path: of the actor
        :param incarnation: 1 for its first attempt
        :param reason: "returned", "stopped" (returned after a stop was asked for), "crashed", "cancelled" (from
            outside, with everything around it), "hung", "start timeout", "shutdown timeout", or the reason of a kill
        :param error: what it raised
        """

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        """An attempt failed, or a permanent child returned, and another attempt will follow.

        :param path: of the actor
        :param delay_seconds: the back-off; with one_for_all and rest_for_one it begins when all affected have stopped
        """

    def actor_unresponsive(self, path: str) -> None:
        """An attempt ignores its cancellation.

        :param path: of the actor
        """

    def intensity_exceeded(self, path: str) -> None:
        """A supervisor gives up.

        :param path: of the supervisor
        """


class NullObserver:
    """Looks away."""

    def actor_started(self, path: str, incarnation: int) -> None:
        """Nothing."""

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        """Nothing."""

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        """Nothing."""

    def actor_unresponsive(self, path: str) -> None:
        """Nothing."""

    def intensity_exceeded(self, path: str) -> None:
        """Nothing."""


def notify(call: Callable[..., None], *arguments: object) -> None:
    """Call an observer's method, and survive it: a broken log line must not take down a tree.

    :param call: the bound method
    :param arguments: its arguments
    """
    try:
        call(*arguments)
    except Exception:  # noqa: BLE001 - whatever it is
        _log.exception("an observer failed")
