"""What the rows of the chaos suite share: their figures, which are shown at the end of the run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.figures import Note
from tests.chaos.redis_servers import ON_A_CLUSTER
from tests.support import apache_kafka as apache
from tests.support.redis_cluster import running_cluster
from tests.support.tiers import IN_FULL

# It plays the rows on a cluster by another run, which is this one then.
collect_ignore = ["test_on_a_cluster.py"] if ON_A_CLUSTER else []

_FIGURE, _RAN_ON = "chaos figure", "chaos broker"


if ON_A_CLUSTER:

    @pytest.fixture(scope="session")
    def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        """A cluster in the place of the one server that all tests share."""
        with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
            yield cluster.url


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured."""
    told = list(_properties(terminalreporter))
    figures = sorted(value for name, value in told if name == _FIGURE)
    brokers = sorted({value for name, value in told if name == _RAN_ON})
    if figures:
        terminalreporter.section(f"chaos figures, {'release' if IN_FULL else 'commit'} tier")
        terminalreporter.line(f"rows 1 to 3 ran on {', '.join(brokers) or 'no broker'}")
        if ON_A_CLUSTER:
            terminalreporter.line("Redis was a cluster of three masters")
        for row, text in figures:
            terminalreporter.line(f"row {row}: {text}")


def _properties(terminalreporter: pytest.TerminalReporter) -> Iterable[tuple[str, Any]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield from report.user_properties
