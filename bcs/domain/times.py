"""The format of times in answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_timestamp(at_us: int) -> str:
    """A stored time in RFC 3339.

    :param at_us: microseconds since 1970 UTC.
    """
    try:
        return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except OverflowError:
        return f"{at_us} us after 1970"  # BCS never wrote that
