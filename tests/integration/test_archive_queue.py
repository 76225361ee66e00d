"""The archive queues in Redis: explanations never fill the queue of facts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bcs.domain.dead_lettered import entry_about
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.history import HistoryEntry
from bcs.errors import StoreUnavailable
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.history_entries import AT_US
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ROOM = 20


async def test_explanations_leave_room_for_facts_during_an_outage(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with ServiceWithArchive(tmp_path, database_url, archive_max_entries=ROOM) as setup:
        await setup.apply(batch, [EssaysRegistered(("e1",), 1, AT_US)])
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        for _ in range(ROOM * 2):
            assert (await setup.resolve(batch)).status == 200
        archive = setup.running.service.persistence.archive
        assert archive is not None
        for number in range(ROOM // 2):
            await setup.apply(batch, [EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US + number)])
        assert archive.backlog.last_known == ROOM // 2
        # The length that is compared with the limit may be one entry old, when it was just sampled.
        assert archive.explanations.last_known is not None
        assert ROOM <= archive.explanations.last_known <= ROOM + 1
        setup.database_proxy.accept()
        await setup.wait_for_archive()
        assert len(await setup.history_facts(batch)) == ROOM // 2 + 1


async def test_an_entry_about_a_dead_letter_does_not_count_as_a_missing_fact(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    entry = entry_about(batch, AT_US, entry_id=uuid.uuid4(), correlation_id=None, reason="not_json: the test says so")
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        await setup.apply(batch, [EssaysRegistered(("e1",), 1, AT_US)])
        archive, client = setup.running.service.persistence.archive, setup.running.service._archive_client
        assert archive
        assert client
        assert entry
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        setup.running.call(client.write_soon, entry)
        await wait_until(lambda: archive.explanations.last_known == 1)
        assert archive.backlog.last_known == 0
        setup.database_proxy.accept()

        async def is_told() -> bool:
            return entry in [each.entry for each in await setup.archive.history(batch, limit=9)]

        await wait_until(is_told)


async def test_queued_entries_stay_until_the_archive_has_them(
    tmp_path: Path, database_url: str, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: list[Fact] = [EssayPhaseEnded("spellcheck", f"e{number}", Outcome.COMPLETED, AT_US) for number in range(3)]
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        archive = setup.running.service.persistence.archive
        assert archive is not None
        write, failed = archive.postgres.write, False

        async def fails_at_first(entries: Sequence[HistoryEntry], **options: Any) -> None:
            nonlocal failed
            if not failed:
                failed = True
                raise StoreUnavailable("postgresql", "the test says so")
            await write(entries, **options)

        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        for fact in facts:
            await setup.apply(batch, [fact])
        monkeypatch.setattr(archive.postgres, "write", fails_at_first)
        setup.database_proxy.accept()
        await wait_until(lambda: failed)
        await setup.wait_for_archive()
        assert await setup.history_facts(batch) == [(fact,) for fact in facts]


async def test_a_report_on_an_unknown_batch_is_accepted_without_the_archive(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        # The batch may have a past that only the record knows; for a report that is no reason to wait.
        assert (await setup.orchestrator.complete(batch, "spellcheck")).status == 200
        setup.database_proxy.accept()
        await setup.wait_for_archive()
        assert (await setup.archive.state(batch)).reports["spellcheck"].outcome is Outcome.COMPLETED
