"""Two replicas are upgraded from the last released build and rolled back, one at a time, under load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.rolling_upgrade import roll
from tests.e2e.runbooks.site import site
from tests.support.former_release import unpacked, wheel

MOST_BYTES = 1_000_000
BATCHES = 150


@pytest.mark.release
@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="the servers end with their parent on Linux alone")
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "redis alone"])
async def test_an_upgrade_and_its_way_back_lose_nothing(archive: bool, tmp_path: Path) -> None:
    former = unpacked(tmp_path / "former")
    async with site() as one:
        if not archive:
            one.settings["database_url"] = None
        rollout = await roll(one, former, BATCHES)
        print(rollout.figures())  # noqa: T201 (shown with -s)


def test_one_released_build_is_kept() -> None:
    assert wheel().stat().st_size < MOST_BYTES
