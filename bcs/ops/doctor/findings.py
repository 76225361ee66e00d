"""The result of a check, and its fix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_MOST_SKEW_SECONDS = 1.0


class Status(StrEnum):
    """The severity of a finding. With a warning the service works, at least for now."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    :param found: the result, as part of a sentence.
    :param fix: the instruction for the operator; empty if there is nothing to do.
    """

    check: str
    status: Status
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """The check passed."""
    return Finding(check, Status.OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """The service works, but something can go wrong."""
    return Finding(check, Status.WARNING, found, fix)


def failed(check: str, found: str, fix: str) -> Finding:
    """The service can't do its work."""
    return Finding(check, Status.FAILED, found, fix)


def brief(error: BaseException) -> str:
    """An error as part of a sentence, with the name of its class. The texts of Kafka's errors already have the name."""
    name, text = type(error).__name__, str(error).rstrip(". ")
    return text if text.startswith(name) else f"{name}: {text}" if text else name


def unknown(check: str, problem: str) -> Finding:
    """The check has no result: the service may work or fail."""
    return warning(check, f"no result: {problem}", "check it with the server's own tools")


def clock_of(check: str, server: str, ahead_seconds: float) -> Finding:
    """Checks that this machine and a server agree on the time.

    :param ahead_seconds: how far the server is ahead of this machine.
    """
    if abs(ahead_seconds) <= _MOST_SKEW_SECONDS:
        return ok(check, f"within {_MOST_SKEW_SECONDS:.0f} s of {server}'s")
    direction = "behind" if ahead_seconds > 0 else "ahead of"
    fix = "synchronise the clocks (NTP): marks are ordered by time"
    return warning(check, f"this machine's is {abs(ahead_seconds):.1f} s {direction} {server}'s", fix)
