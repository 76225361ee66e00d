"""Times as microseconds since 1970 UTC, and their format in answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LATEST_US = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
"""The latest time that an event may have; Kafka itself accepts any number."""


def microseconds(time: datetime) -> int:
    """Microseconds since 1970 UTC; a time without a zone is UTC, as all producers write it."""
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH
    # Integers only: as a float, microseconds lose the last digit, and two facts could change their order.
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def datetime_of(at_us: int) -> datetime:
    """The date and time of a stored time.

    :param at_us: microseconds since 1970 UTC.
    :raises OverflowError: the time is before the year 1 or after 9999.
    """
    return EPOCH + timedelta(microseconds=at_us)


def format_timestamp(at_us: int) -> str:
    """A stored time in RFC 3339.

    :param at_us: microseconds since 1970 UTC.
    """
    try:
        return datetime_of(at_us).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except OverflowError:
        return f"{at_us} us after 1970"  # BCS never wrote that
