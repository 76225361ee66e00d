"""What waits in Redis for the record: facts have a queue of their own, which nothing else fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome
from tests.integration.record_world import RecordWorld
from tests.support.past import AT_US

pytestmark = pytest.mark.anyio

ROOM = 20


async def test_what_is_asked_while_the_record_is_away_leaves_room_for_facts(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with RecordWorld(tmp_path, database_url, archive_max_entries=ROOM) as world:
        await world.tell(batch, [EssaysRegistered(("e1",), 1, AT_US)])
        world.database_proxy.refuse()
        await world.database_proxy.cut()
        for _ in range(ROOM * 2):
            assert (await world.resolve(batch)).status == 200
        permanent = world.running.service.persistence.permanent
        assert permanent is not None
        for number in range(ROOM // 2):
            await world.tell(batch, [EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US + number)])
        assert permanent.backlog.last_known == ROOM // 2
        assert permanent.explanations.last_known == ROOM
        world.database_proxy.accept()
        await world.reached_again()
        assert len(await world.told(batch)) == ROOM // 2 + 1
