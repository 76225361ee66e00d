"""Two tiers: what is marked `release` runs at a release only, and a run at a commit says what it left out."""

from __future__ import annotations

import os
from typing import Any

import pytest

IN_FULL = os.environ.get("BCS_TEST_CHAOS") == "full"
_MORE_IN_FULL = 10
_NOT_PLAYED: pytest.StashKey[set[str]] = pytest.StashKey()
# What a worker of pytest-xdist tells its controller, which collects nothing itself.
_WORKER_OUTPUT = "not_played"


def examples(at_a_commit: int) -> int:
    """How many examples a property is tried with; many more at a release."""
    return at_a_commit * _MORE_IN_FULL if IN_FULL else at_a_commit


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the release tier out of a run at a commit."""
    left_out = [] if IN_FULL else [item for item in items if item.get_closest_marker("release")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("release")]
        config.stash.setdefault(_NOT_PLAYED, set()).update(item.nodeid for item in left_out)
        config.hook.pytest_deselected(items=left_out)


def tell_the_controller(config: pytest.Config) -> None:
    """Hand over what a worker has left out; in any other process, do nothing."""
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output[_WORKER_OUTPUT] = sorted(config.stash.get(_NOT_PLAYED, ()))


def hear_from_worker(node: Any) -> None:
    """Note what a worker has left out: each has collected the same."""
    told = getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT, [])
    node.config.stash.setdefault(_NOT_PLAYED, set()).update(told)


def show_not_played(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what was left out, with the commands that play it."""
    not_played = config.stash.get(_NOT_PLAYED, set())
    if not not_played:
        return
    terminalreporter.section("release tier")
    terminalreporter.line(
        f"tests of the release tier NOT PLAYED: {len(not_played)}, and tests/chaos in its small sizes; all of it: "
        "BCS_TEST_CHAOS=full python -m pytest tests/chaos, and BCS_TEST_CHAOS=full python -m pytest -m release "
        "--ignore tests/chaos"
    )
    for name in sorted(not_played):
        terminalreporter.line(f"  {name}")
