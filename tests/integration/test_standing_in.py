"""When PostgreSQL may answer instead of a Redis that is away: when no fact waits for it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bcs.config.loading import load_settings
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.history import PipelineResolved
from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.factory import Persistence, open_persistence
from bcs.storage.redis.batch_codec import STAMP_FIELD, BatchKeys
from bcs.wire.published import OutboundMessage
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.history_entries import AT_US, consumed, spellchecked
from tests.support.laws import LAW
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

AWAY = StoreUnavailable("redis", "away")
LONG_SECONDS = 0.2  # longer than Redis takes to answer, also on a machine that has much to do


@pytest.fixture
async def persistence(redis_url: str, redis_key_prefix: str, database_url: str) -> AsyncIterator[Persistence]:
    settings = load_settings(redis_url=redis_url, redis_key_prefix=redis_key_prefix, database_url=database_url)
    opened = open_persistence(settings, law=LAW)
    assert opened.archive
    await opened.archive.postgres.probe(20)
    yield opened
    await opened.aclose()


def resolved() -> PipelineResolved:
    return PipelineResolved(
        uuid.uuid4(),
        "batch",
        1,
        correlation_id="correlation",
        asked_by="test",
        pipeline="ai_feedback",
        decisions=(),
        version=1,
        source="redis",
    )


async def test_answers_without_effect_wait_for_facts_from_before_a_failover_as_others_do(
    persistence: Persistence, batch: str, redis_key_prefix: str
) -> None:
    assert persistence.archive
    assert persistence.nodes
    backlog = persistence.archive.backlog
    await persistence.store.commit(batch, delta_of([EssaysRegistered(("e1",), 1, AT_US), spellchecked()]))
    facts = BatchKeys(redis_key_prefix, batch).facts
    await persistence.nodes.at(facts).call(("HSET", facts, STAMP_FIELD, "another/making"))
    await backlog.append([consumed(batch, spellchecked(outcome=Outcome.FAILED))])

    async def has_waited() -> bool:
        return await backlog.oldest_seconds(batch) > LONG_SECONDS

    await wait_until(has_waited)
    for read in (persistence.store.summary, persistence.snapshots.summary, persistence.snapshots.snapshot):
        with pytest.raises(StoreUnavailable, match="that this Redis may lack"):
            await read(batch)
    await backlog.ack(await backlog.lease(9))
    for read in (persistence.snapshots.summary, persistence.snapshots.snapshot, persistence.store.summary):
        await read(batch)


async def test_an_explanation_does_not_count_as_a_missing_fact(persistence: Persistence) -> None:
    assert persistence.archive
    await persistence.outbox.announce([OutboundMessage("phase_skipped", "topic", b"key", b"value")], resolved())
    await persistence.archive.backlog.backlog()
    assert persistence.archive.can_answer_for_redis(AWAY)


async def test_a_drained_backlog_counts_as_empty(persistence: Persistence) -> None:
    assert persistence.archive
    backlog = persistence.archive.backlog
    await persistence.archive.backlog.backlog()
    await backlog.append([resolved()])
    assert not persistence.archive.can_answer_for_redis(AWAY)
    await backlog.ack(await backlog.lease(10))
    assert persistence.archive.can_answer_for_redis(AWAY)


async def test_a_new_process_does_not_take_an_unread_backlog_for_empty(persistence: Persistence) -> None:
    assert persistence.archive
    assert not persistence.archive.can_answer_for_redis(AWAY), "facts may wait from before"
    await persistence.archive.backlog.backlog()
    assert persistence.archive.can_answer_for_redis(AWAY)


async def test_a_batch_without_an_archived_registration_gets_no_answer(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    registered = f"{batch}-registered"
    done = EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US)
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        await setup.apply(batch, [done])
        await setup.apply(registered, [EssaysRegistered(("e1",), 1, AT_US), done])
        await wait_until(lambda: is_archived(setup, registered))
        setup.redis_proxy.refuse()
        await setup.redis_proxy.cut()

        async def answered_by_postgresql() -> bool:
            answer = await setup.resolve(registered)
            return answer.status == 200 and answer.json["source"] == "postgresql"

        await wait_until(answered_by_postgresql)
        await wait_until(lambda: announcement_waits(setup), description="what waits in PostgreSQL is in the metrics")
        assert (await setup.orchestrator.metric("bcs_pipeline_answers_total", source="postgresql") or 0) >= 1
        assert (await setup.resolve(batch)).status == 503


async def test_postgresql_answers_soon_after_a_start_without_it(tmp_path: Path, database_url: str, batch: str) -> None:
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        await setup.restart()
        done = EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US)
        await setup.apply(batch, [EssaysRegistered(("e1",), 1, AT_US), done])
        setup.database_proxy.accept()
        await wait_until(lambda: is_archived(setup, batch))
        setup.redis_proxy.refuse()
        await setup.redis_proxy.cut()

        async def answered_by_postgresql() -> bool:
            answer = await setup.resolve(batch)
            return answer.status == 200 and answer.json["source"] == "postgresql"

        await wait_until(answered_by_postgresql)


async def is_archived(setup: ServiceWithArchive, batch_id: str) -> bool:
    """True once PostgreSQL has the batch, and the service has seen that nothing waits."""
    has_batch = (await setup.archive.state(batch_id)).expected is not None
    return has_batch and await setup.orchestrator.metric("bcs_archive_backlog") == 0


async def announcement_waits(setup: ServiceWithArchive) -> bool:
    waiting, seconds = [await setup.orchestrator.metric(f"bcs_outbox_{name}") for name in ("backlog", "oldest_seconds")]
    return bool((waiting or 0) >= 1 and (seconds or 0) > 0)
