"""Rows 1 to 6, 10, 12, 15 and 18 once more, where Redis is a cluster of three masters.

`BCS_TEST_CHAOS_REDIS=cluster` plays any row in this way.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import anyio
import pytest

from tests.chaos.figures import Note

pytestmark = [pytest.mark.anyio, pytest.mark.release]

ROWS = ["kills", "crash_points", "lost_replies", "contention", "long_outages", "stops", "poison", "forgetting"]
# Of rows 1 to 3 one schedule with one replica of BCS, and one with two; all thirty are played on one server.
SEEDS = {"BCS_TEST_CHAOS_SEED": "1,2"}
LIMIT_SECONDS = 1800


@pytest.mark.parametrize("row", ROWS)
async def test_the_row_holds_on_a_cluster(row: str, note_figure: Note) -> None:
    module = str(Path(__file__).parent / f"test_{row}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", module]
    environment = {**SEEDS, **os.environ, "BCS_TEST_CHAOS_REDIS": "cluster"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    with anyio.fail_after(LIMIT_SECONDS):
        ended = await anyio.run_process(command, env=environment, check=False)
    output = ended.stdout.decode()
    assert ended.returncode == 0, output
    figures = re.findall(r"^row (\d+): (.*)", output, re.MULTILINE)
    assert figures, output
    for number, text in figures:
        note_figure(int(number), f"on a cluster, {text}")
