"""Lets a login that a server has refused wait before it is tried again, at Kafka, Redis and PostgreSQL alike.

Their clients try again up to sixteen times a second. That would lock the account where a server counts refusals, and
BCS could not log in even with the right password.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class RefusedLogins:
    """The logins that servers have refused. A login with another secret is tried at once.

    :param clock: returns seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[Hashable, _Refusal] = {}

    def ensure_due(self, address: Hashable, secret: Hashable) -> None:
        """Fail while the login has to wait.

        :param secret: what has to change for a new try. Only its hash is kept.
        :raises Exception: it has to wait; the error is of the kind of the refusal, and has its texts.
        """
        refusal = self._refused.get(address)
        if refusal and refusal.secret == hash(secret) and self._clock() < refusal.until:
            raise refusal.kind(*refusal.texts)

    def note(self, address: Hashable, secret: Hashable, error: Exception, *, may_lock: bool = True) -> None:
        """Note that a server has refused a login. The pause grows with each refusal.

        :param may_lock: False for a login that locks no account; its pause does not grow.
        """
        before = self._refused.get(address)
        same = before is not None and before.secret == hash(secret)
        longest = _LONGEST_PAUSE_SECONDS if may_lock else _FIRST_PAUSE_SECONDS
        pause = min(2 * before.pause_seconds, longest) if before and same else _FIRST_PAUSE_SECONDS
        self._refused[address] = _Refusal(
            secret=hash(secret), kind=type(error), texts=error.args, pause_seconds=pause, until=self._clock() + pause
        )

    def forget(self, address: Hashable) -> None:
        """Note that a server has accepted a login."""
        self._refused.pop(address, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    secret: int
    kind: type[Exception]
    texts: tuple[object, ...]
    pause_seconds: float
    until: float
