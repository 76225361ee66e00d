"""How a rebuild processes messages, also when the archive refuses entries."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from aiokafka import ConsumerRecord

from bcs.domain.history import FactsRecorded, HistoryEntry
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.state import BatchState, delta_of
from bcs.domain.times import LATEST_US, microseconds
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.ops.rebuild.essay_limit import EssayLimit
from bcs.ops.rebuild.reading import TimedRecord
from bcs.ops.rebuild.rebuilder import Rebuilder
from bcs.wire.decoding import EventDecoder
from tests.support.events import Event, registered, spellchecked

pytestmark = pytest.mark.anyio


class HistoryReader:
    """A reader with prepared messages."""

    def __init__(self, *events: Event, at_ms: int = 7) -> None:
        self._events = events
        self._at_ms = at_ms

    async def portions(self) -> AsyncIterator[list[TimedRecord]]:
        yield [
            TimedRecord(ConsumerRecord(each.topic, 0, offset, 7, 0, each.key, each.value, None, 0, 0, ()), self._at_ms)
            for offset, each in enumerate(self._events)
        ]


class Record:
    """Stands for a record that refuses a batch, or is away."""

    def __init__(self, refuses: str | None = None, away: bool = False) -> None:
        self._refuses = refuses
        self._away = away
        self.written: list[HistoryEntry] = []

    async def write(self, entries: Sequence[HistoryEntry], *, deadline_seconds: float) -> None:
        assert deadline_seconds > 1
        if self._away:
            raise StoreUnavailable("postgresql", "away")
        if any(entry.batch_id == self._refuses for entry in entries):
            raise StoreRefused("postgresql", "no")
        self.written += entries

    async def state(self, batch_id: str) -> BatchState:
        entries = [entry for entry in self.written if isinstance(entry, FactsRecorded)]
        return delta_of(fact for entry in entries if entry.batch_id == batch_id for fact in entry.facts)


class Store:
    """A fake of Redis that remembers its calls."""

    def __init__(self) -> None:
        self.distrusted: set[str] = set()

    async def invalidate(self, batch_ids: Iterable[str]) -> None:
        self.distrusted |= set(batch_ids)


def rebuilder_of(record: Record, store: Store, max_skew_us: int = LATEST_US) -> Rebuilder:
    decoder, now_us = EventDecoder(PLATFORM_PHASES), microseconds(datetime(2026, 12, 1, tzinfo=UTC))
    return Rebuilder(
        decoder=decoder,
        archive=cast("Any", record),
        stored=cast("Any", store),
        notify=lambda: None,
        now_us=now_us,
        max_skew_us=max_skew_us,
    )


async def test_one_that_is_refused_spoils_nothing_for_the_others() -> None:
    events = [registered(batch, ["e"]) for batch in "abcdefg"]
    record, store = Record(refuses="d"), Store()
    rebuilder = rebuilder_of(record, store)
    await rebuilder.rebuild(cast("Any", HistoryReader(*events, spellchecked("a", "e", "pending"), Event(*_junk()))))
    assert [entry.batch_id for entry in record.written] == list("abcefg")
    stats = rebuilder.stats
    assert (stats.messages, stats.facts, stats.refused, stats.undecodable, stats.without_facts) == (9, 6, 1, 1, 1)
    assert store.distrusted == stats.batches == set("abcdefg")


async def test_redis_is_told_also_when_nobody_knows_what_the_record_has_now() -> None:
    store = Store()
    with pytest.raises(StoreUnavailable):
        await rebuilder_of(Record(away=True), store).rebuild(cast("Any", HistoryReader(registered("a", ["e"]))))
    assert store.distrusted == {"a"}


async def test_a_time_that_no_calendar_has_is_the_latest_one() -> None:
    record = Record()
    past = HistoryReader(registered("a", ["e"]), at_ms=2**62)
    await rebuilder_of(record, Store()).rebuild(cast("Any", past))
    [entry] = record.written
    assert isinstance(entry, FactsRecorded)
    assert entry.at_us == LATEST_US


async def test_what_claims_to_be_in_the_future_is_left_out_as_the_service_does() -> None:
    record = Record()
    written_us = microseconds(datetime(2026, 1, 1, tzinfo=UTC))
    rebuilder = rebuilder_of(record, Store(), max_skew_us=1)
    past = HistoryReader(
        spellchecked("a", "e", at="2026-01-01T00:00:00.000001Z"),
        spellchecked("a", "f", at="2026-01-01T00:00:00.000002Z"),  # by now that is long past; when it came it was not
        at_ms=written_us // 1000,
    )
    await rebuilder.rebuild(cast("Any", past))
    [entry] = record.written
    assert isinstance(entry, FactsRecorded)
    assert [fact.at_us for fact in entry.facts] == [written_us + 1]
    assert rebuilder.stats.undecodable == 1


async def test_an_event_with_too_many_essays_is_left_out_as_in_the_service() -> None:
    record = Record()
    rebuilder = replace(rebuilder_of(record, Store()), essay_limit=EssayLimit(cast("Any", record), 3))
    past = HistoryReader(
        registered("a", ["1", "2"]),
        spellchecked("a", "1"),
        spellchecked("a", "3"),
        spellchecked("b", "4"),
        registered("a", ["4", "5"]),
        spellchecked("a", "4"),
        spellchecked("a", "2"),
    )
    await rebuilder.rebuild(cast("Any", past))
    offsets = [entry.position.offset for entry in record.written if isinstance(entry, FactsRecorded) and entry.position]
    assert offsets == [0, 1, 2, 3, 6]
    assert rebuilder.stats.undecodable == 2


async def test_the_same_message_has_the_same_entry_each_time() -> None:
    past = HistoryReader(spellchecked(str(uuid.uuid4()), "e"))
    first, second = Record(), Record()
    for record in (first, second):
        await rebuilder_of(record, Store()).rebuild(cast("Any", past))
    assert first.written == second.written


def _junk() -> tuple[str, bytes, bytes]:
    return registered("a", ["e"]).topic, b"key", b"junk"
