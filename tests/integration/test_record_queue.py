"""The archive queues in Redis: explanations never fill the queue of facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.history import HistoryEntry
from bcs.errors import StoreUnavailable
from tests.integration.record_world import RecordWorld
from tests.support.past import AT_US
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ROOM = 20


async def test_what_is_asked_while_the_record_is_away_leaves_room_for_facts(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with RecordWorld(tmp_path, database_url, archive_max_entries=ROOM) as world:
        await world.notify(batch, [EssaysRegistered(("e1",), 1, AT_US)])
        world.database_proxy.refuse()
        await world.database_proxy.cut()
        for _ in range(ROOM * 2):
            assert (await world.resolve(batch)).status == 200
        archive = world.running.service.persistence.archive
        assert archive is not None
        for number in range(ROOM // 2):
            await world.notify(batch, [EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US + number)])
        assert archive.backlog.last_known == ROOM // 2
        assert archive.explanations.last_known == ROOM
        world.database_proxy.accept()
        await world.reached_again()
        assert len(await world.told(batch)) == ROOM // 2 + 1


async def test_what_waits_stays_until_the_record_has_it(
    tmp_path: Path, database_url: str, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: list[Fact] = [EssayPhaseEnded("spellcheck", f"e{number}", Outcome.COMPLETED, AT_US) for number in range(3)]
    async with RecordWorld(tmp_path, database_url) as world:
        archive = world.running.service.persistence.archive
        assert archive is not None
        write, failed = archive.postgres.write, False

        async def fails_at_first(entries: Sequence[HistoryEntry], **options: Any) -> None:
            nonlocal failed
            if not failed:
                failed = True
                raise StoreUnavailable("postgresql", "the test says so")
            await write(entries, **options)

        world.database_proxy.refuse()
        await world.database_proxy.cut()
        for fact in facts:
            await world.notify(batch, [fact])
        monkeypatch.setattr(archive.postgres, "write", fails_at_first)
        world.database_proxy.accept()
        await wait_until(lambda: failed)
        await world.reached_again()
        assert await world.told(batch) == [(fact,) for fact in facts]


async def test_a_report_on_an_unknown_batch_is_accepted_without_the_archive(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with RecordWorld(tmp_path, database_url) as world:
        world.database_proxy.refuse()
        await world.database_proxy.cut()
        # The batch may have a past that only the record knows; for a report that is no reason to wait.
        assert (await world.bos.complete(batch, "spellcheck")).status == 200
        world.database_proxy.accept()
        await world.reached_again()
        assert (await world.record.state(batch)).reports["spellcheck"].outcome is Outcome.COMPLETED
