"""Every query of the dashboard finds something in a real Prometheus that scrapes a running service."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.watched import watched
from tests.support.dashboard import EMPTY_WHEN_HEALTHY, queries

pytestmark = [pytest.mark.anyio, pytest.mark.release, pytest.mark.serial]


async def test_every_query_of_the_dashboard_finds_series_of_a_running_service(tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus: the program `prometheus` (Debian's package) is not installed")
    async with watched(program, tmp_path) as found:
        empty = [query for query in queries() if not found.now(query)]
        alerts = {series["metric"]["alertname"] for series in found.course('ALERTS{alertstate="firing"}')}
        unexplained = [query for query in empty if not any(name in query for name in EMPTY_WHEN_HEALTHY)]
    assert not unexplained
    # What the load did on purpose: Redis was away, and events were broken.
    assert {"BcsDeadLetters", "BcsResolutionErrorsBurnsFast"} <= alerts
