"""Which causes of an outage the log has named already."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Causes that keep changing must not fill the log.
_MOST = 5
_number = re.compile(r"\d+")


@dataclass(slots=True)
class SaidCauses:
    """The causes of one outage: each is to be said once, whatever numbers are in it."""

    _kinds: set[str] = field(default_factory=set, init=False)

    def note(self, cause: str) -> bool:
        """Note a cause; True if it is to be said."""
        kind = _number.sub("0", cause)
        if kind in self._kinds or len(self._kinds) >= _MOST:
            return False
        self._kinds.add(kind)
        return True

    def clear(self) -> bool:
        """The outage is over; True if something was said of it."""
        said = bool(self._kinds)
        self._kinds.clear()
        return said
