"""The events of a tree, for logs and metrics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the events of a tree, synchronously and on the event loop: the methods must be fast.

    Errors of an observer are logged and then ignored. A path consists of the names below the root, joined by "/", like
    "batches/router"; the path of the root is "". A child of a dynamic supervisor starts and ends with every burst of
    messages, and the observer is notified each time.
    """

    def actor_started(self, path: str, incarnation: int) -> None:
        """An attempt starts.

        :param path: the path of the actor
        :param incarnation: the number of the attempt; the first one has 1
        """

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        """An attempt ended.

        :param path: the path of the actor
        :param incarnation: the number of the attempt; the first one has 1
        :param reason: "returned", "stopped" (returned after a stop request), "crashed", "cancelled" (from outside,
            together with its supervisor), "hung", "start timeout", "shutdown timeout", or the reason of a kill
        :param error: the error that the attempt raised
        """

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        """An attempt failed, or a permanent child returned, and another attempt will follow.

        :param path: the path of the actor
        :param delay_seconds: the back-off; with one_for_all and rest_for_one it begins when the whole group has stopped
        """

    def actor_unresponsive(self, path: str) -> None:
        """An attempt ignores its cancellation.

        :param path: the path of the actor
        """

    def intensity_exceeded(self, path: str) -> None:
        """A supervisor gives up.

        :param path: the path of the supervisor
        """


class NullObserver:
    """An observer that does nothing."""

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
    """Call an observer's method, and log its errors: a broken observer must not stop a tree.

    :param call: the bound method
    :param arguments: the arguments
    """
    try:
        call(*arguments)
    except Exception:  # noqa: BLE001 - any error of an observer
        _log.exception("an observer failed")
