"""An open page `/ui` costs the service at most a hundredth of a core, whatever the number of batches."""

from __future__ import annotations

import pytest

from tests.e2e.page_cost import measure, said

pytestmark = [pytest.mark.anyio, pytest.mark.release, pytest.mark.serial]


async def test_an_open_page_costs_at_most_a_hundredth_of_a_core() -> None:
    cost = await measure()
    print(said(cost))  # noqa: T201
    assert cost.first_page <= 0.01
    assert cost.further_page <= 0.01
    assert cost.snapshot_bytes < 16_000
