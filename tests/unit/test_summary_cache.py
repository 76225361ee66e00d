"""The cache of summaries is bounded, and keeps nothing of a server without an identity."""

from __future__ import annotations

import pytest

from bcs.domain.progress import BatchSummary
from bcs.storage.redis.summary_cache import KeptSummary, SummaryCache


def test_the_summary_that_was_put_first_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcs.storage.redis.summary_cache._MOST_BATCHES", 3)
    cache, kept = SummaryCache(), KeptSummary("redis", b"1", BatchSummary(1))
    for batch_id in ("a", "b", "c", "a", "d"):
        cache.put(batch_id, kept)
    assert [batch_id for batch_id in "abcd" if cache.get(batch_id)] == ["a", "c", "d"]


def test_a_server_without_an_identity_leaves_nothing() -> None:
    cache = SummaryCache()
    cache.put("a", KeptSummary("redis", b"1", BatchSummary(1)))
    cache.put("a", KeptSummary("", b"2", BatchSummary(2)))
    assert cache.get("a") is None
