"""The envelopes in many mailboxes, counted as they come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcs.supervision.envelope import Envelope


class Load:
    """The envelopes that are queued, unacked, or waiting for redelivery. Mailboxes may share one load."""

    __slots__ = ("_enqueued_at",)

    def __init__(self) -> None:
        self._enqueued_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._enqueued_at)

    def add(self, envelope: Envelope[Any]) -> None:
        """Count an envelope.

        :param envelope: an envelope that a mailbox holds from now on
        """
        self._enqueued_at[id(envelope)] = envelope.enqueued_at

    def remove(self, envelope: Envelope[Any]) -> None:
        """Count an envelope no more.

        :param envelope: an envelope that a mailbox drops
        """
        self._enqueued_at.pop(id(envelope), None)

    def oldest_age_seconds(self, now: float) -> float:
        """The age of the oldest envelope, 0.0 when there is none.

        :param now: the current time, in seconds of anyio's clock
        """
        times = self._enqueued_at.values()
        return max(0.0, now - min(times)) if times else 0.0
