"""What the rows of the chaos suite share: they tell their figures, which are shown at the end of the run."""

from pathlib import Path

import pytest

from tests.chaos.figures import Note
from tests.chaos.sizes import IN_FULL
from tests.support import apache_kafka as apache

_BROKER = pytest.StashKey[str]()
_FIGURES = pytest.StashKey[dict[int, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect."""
    config.stash[_FIGURES] = {}


@pytest.fixture
def note_figure(pytestconfig: pytest.Config) -> Note:
    """Tells a figure: the number of a row in docs/guarantees.md, and what was measured."""
    return lambda row, text: pytestconfig.stash[_FIGURES].setdefault(row, []).append(text)


@pytest.fixture(scope="session")
def apache_kafka_jars_if_any(pytestconfig: pytest.Config) -> Path | None:
    """Apache Kafka itself for schedules that a stand-in does not survive; None where it can't run."""
    try:
        jars = apache.fetch()
    except apache.ApacheKafkaMissing as missing:
        pytestconfig.stash[_BROKER] = f"Tansu, since there is no Apache Kafka: {missing}"
        return None
    pytestconfig.stash[_BROKER] = f"Apache Kafka {apache.VERSION}"
    return jars


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    figures = config.stash[_FIGURES]
    if figures:
        terminalreporter.section(f"chaos figures, {'full' if IN_FULL else 'sized down'}")
        terminalreporter.line(f"rows 1 to 3 ran on {config.stash.get(_BROKER, 'no broker')}")
        for row, texts in sorted(figures.items()):
            for text in texts:
                terminalreporter.line(f"row {row}: {text}")
