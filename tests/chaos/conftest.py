"""What the rows of the chaos suite share: their tier, and their figures, which are shown at the end of the run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.figures import Note
from tests.chaos.sizes import IN_FULL
from tests.support import apache_kafka as apache

_NOT_PLAYED: pytest.StashKey[set[str]] = pytest.StashKey()
_FIGURE, _RAN_ON = "chaos figure", "chaos broker"
# What a worker of pytest-xdist tells its controller, which collects nothing itself.
_WORKER_OUTPUT = "chaos_not_played"


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect."""
    config.stash[_NOT_PLAYED] = set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Rows of the release tier are played at a release only."""
    if IN_FULL:
        return
    left_out = [item for item in items if item.get_closest_marker("release")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("release")]
        config.stash[_NOT_PLAYED] |= {item.nodeid for item in left_out}
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells its controller what it has left out."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        not_played = session.config.stash[_NOT_PLAYED]
        output[_WORKER_OUTPUT] = sorted(not_played)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended: each has collected the same."""
    node.config.stash[_NOT_PLAYED].update(getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT, []))


@pytest.fixture
def note_figure(request: pytest.FixtureRequest) -> Note:
    """Tells a figure: the number of a row in docs/guarantees.md, and what was measured."""
    # With the report of the test, which is all that a worker of pytest-xdist hands to its controller.
    return lambda row, text: request.node.user_properties.append((_FIGURE, [row, text]))


@pytest.fixture
def apache_kafka_jars_if_any(request: pytest.FixtureRequest) -> Path | None:
    """Apache Kafka itself for schedules that a stand-in does not survive; None where it can't run."""
    try:
        jars = apache.fetch()
    except apache.ApacheKafkaMissing as missing:
        request.node.user_properties.append((_RAN_ON, f"Tansu, since there is no Apache Kafka: {missing}"))
        return None
    request.node.user_properties.append((_RAN_ON, f"Apache Kafka {apache.VERSION}"))
    return jars


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured, and what was not played."""
    told = list(_properties(terminalreporter))
    figures = sorted(value for name, value in told if name == _FIGURE)
    brokers = sorted({value for name, value in told if name == _RAN_ON})
    if figures:
        terminalreporter.section(f"chaos figures, {'release' if IN_FULL else 'commit'} tier")
        terminalreporter.line(f"rows 1 to 3 ran on {', '.join(brokers) or 'no broker'}")
        for row, text in figures:
            terminalreporter.line(f"row {row}: {text}")
    if not_played := config.stash[_NOT_PLAYED]:
        terminalreporter.section("chaos, release tier")
        terminalreporter.line(
            f"rows of the release tier NOT PLAYED: {len(not_played)}, and the others in their small sizes; all of it: "
            "BCS_TEST_CHAOS=full python -m pytest tests/chaos"
        )
        for name in sorted(not_played):
            terminalreporter.line(f"  {name}")


def _properties(terminalreporter: pytest.TerminalReporter) -> Iterable[tuple[str, Any]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield from report.user_properties
