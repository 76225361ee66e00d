"""The cache of summaries is bounded, and keeps nothing of a server without an identity."""

from __future__ import annotations

import pytest

from bcs.domain.progress import BatchSummary
from bcs.storage.redis.summary_cache import KeptSummary, SummaryCache


def test_the_summary_that_was_put_first_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcs.storage.redis.summary_cache._MOST_BATCHES", 3)
    cache, kept = SummaryCache(), KeptSummary("redis", b"1", BatchSummary(1), law="l")
    for batch_id in ("a", "b", "c", "a", "d"):
        cache.put(batch_id, kept)
    assert [batch_id for batch_id in "abcd" if cache.get(batch_id, "l")] == ["a", "c", "d"]


def test_a_server_without_an_identity_leaves_nothing() -> None:
    cache = SummaryCache()
    cache.put("a", KeptSummary("redis", b"1", BatchSummary(1), law="l"))
    cache.put("a", KeptSummary("", b"2", BatchSummary(2), law="l"))
    assert cache.get("a", "l") is None


def test_a_summary_under_another_law_is_not_used() -> None:
    cache, kept = SummaryCache(), KeptSummary("redis", b"1", BatchSummary(1), law="old")
    cache.put("a", kept)
    assert (cache.get("a", "old"), cache.get("a", "new")) == (kept, None)
