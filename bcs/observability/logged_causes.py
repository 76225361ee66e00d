"""Keeps each cause of an outage from being logged more than once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Causes that keep changing must not fill the log.
_MOST = 5
_number = re.compile(r"\d+")


@dataclass(slots=True)
class LoggedCauses:
    """The logged causes of one outage. Causes whose texts differ only in numbers count as equal."""

    _kinds: set[str] = field(default_factory=set, init=False)

    def note(self, cause: str) -> bool:
        """Note a cause; True if the cause is to be logged now."""
        kind = _number.sub("0", cause)
        if kind in self._kinds or len(self._kinds) >= _MOST:
            return False
        self._kinds.add(kind)
        return True

    def clear(self) -> bool:
        """End the outage; True if a cause was logged."""
        logged = bool(self._kinds)
        self._kinds.clear()
        return logged
