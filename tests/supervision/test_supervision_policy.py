"""Back-off, restart intensity, errors: plain values."""

from __future__ import annotations

from typing import Any

import pytest

from bcs.supervision import (
    ActorDied,
    AskTimeout,
    Backoff,
    MailboxClosed,
    MailboxFull,
    RestartIntensity,
    RestartIntensityExceeded,
    RestartWindow,
    SupervisionError,
    UnexpectedCancellation,
    UnknownChild,
    describe,
)
from tests.support.guarantees import guarantees


@guarantees("The wait grows by a factor up to a maximum", topic="Back-off")
def test_backoff_grows_by_its_factor_up_to_the_cap() -> None:
    backoff = Backoff(initial_seconds=0.1, factor=3.0, maximum_seconds=2.0, jitter=0.0)
    assert [backoff.delay(step, lambda: 0.5) for step in range(5)] == pytest.approx([0.1, 0.3, 0.9, 2.0, 2.0])


@guarantees("The calculation of the wait never overflows", topic="Back-off")
@pytest.mark.parametrize("step", [1_000, 10**9, 10**400])
def test_backoff_never_overflows(step: int) -> None:
    assert Backoff(jitter=0.0).delay(step, lambda: 0.0) == 5.0
    assert Backoff(initial_seconds=0.0).delay(step, lambda: 0.0) == 0.0


@guarantees("Jitter only shortens the wait, so no wait exceeds the maximum", topic="Back-off")
def test_jitter_shortens_the_wait_and_never_exceeds_the_cap() -> None:
    backoff = Backoff(initial_seconds=1.0, maximum_seconds=1.0, jitter=0.25)
    assert backoff.delay(7, lambda: 0.0) == 1.0
    assert backoff.delay(7, lambda: 1.0) == 0.75


@guarantees("Values that make no sense are refused", topic="Back-off")
@pytest.mark.parametrize("bad", [{"factor": 0.5}, {"jitter": 1.5}, {"initial_seconds": -1.0}])
def test_an_invalid_backoff_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="invalid back-off"):
        Backoff(**bad)


@guarantees(
    "A supervisor allows a number of restarts within a sliding window; a refused restart is not counted",
    topic="Restart intensity and escalation",
)
def test_the_window_slides() -> None:
    window = RestartWindow(RestartIntensity(max_restarts=2, period_seconds=10.0))
    assert window.allow(0.0)
    assert window.allow(9.0)
    assert not window.allow(9.9)
    assert window.allow(10.0)  # the first one has left; the refused one was not counted
    assert not window.allow(18.9)
    assert window.allow(19.0)


@guarantees(
    "A supervisor says which share of its restart intensity is used up", topic="Restart intensity and escalation"
)
def test_the_used_share_falls_as_the_window_slides() -> None:
    window = RestartWindow(RestartIntensity(max_restarts=4, period_seconds=10.0))
    assert window.used(0.0) == 0.0
    for now in (0.0, 1.0, 2.0):
        window.allow(now)
    assert window.used(9.9) == 0.75
    assert window.used(11.0) == 0.25
    assert RestartWindow(RestartIntensity(max_restarts=0)).used(0.0) == 1.0


@guarantees("An intensity may allow no restart at all", topic="Restart intensity and escalation")
def test_no_restart_may_be_allowed() -> None:
    assert not RestartWindow(RestartIntensity(max_restarts=0)).allow(0.0)


@guarantees("Values that make no sense are refused", topic="Restart intensity and escalation")
@pytest.mark.parametrize("bad", [{"max_restarts": -1}, {"period_seconds": 0.0}, {"period_seconds": -1.0}])
def test_an_invalid_intensity_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="invalid intensity"):
        RestartIntensity(**bad)


@guarantees("Every error says whether to retry", topic="Asks")
@pytest.mark.parametrize(
    ("error", "retryable", "text"),
    [
        (MailboxFull("m", 3), True, "m: full at 3"),
        (MailboxClosed("m"), False, "m: closed"),
        (AskTimeout("m", 1.5), True, "m: no answer within 1.5 s"),
        (ActorDied("a", "crashed"), True, "a: died (crashed)"),
        (RestartIntensityExceeded("s", 3, 5.0, "Boom"), False, "s: more than 3 restarts in 5.0 s; last: Boom"),
        (UnknownChild("s", "x"), False, "s: has no child 'x'"),
        (UnexpectedCancellation("a"), True, "a: a native cancellation"),
    ],
)
def test_errors_say_what_happened_and_whether_to_retry(error: SupervisionError, retryable: bool, text: str) -> None:
    assert error.retryable is retryable
    assert str(error).startswith(text)


@guarantees("A snapshot keeps an error as one line; the line of an exception group names its leaves", topic="Snapshot")
def test_an_error_group_is_described_with_its_leaves() -> None:
    group = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [KeyError()])])
    assert describe(group) == "ExceptionGroup(ValueError: x; ExceptionGroup(KeyError))"
