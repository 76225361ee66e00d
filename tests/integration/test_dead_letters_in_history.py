"""The history of a batch tells of its dead letters."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from redis.asyncio import Redis
from rich.console import Group

from bcs.cli.batch_history import printed_lines
from bcs.cli.output import present
from bcs.domain.dead_lettered import entry_about
from bcs.domain.history import ArchivedEntry, Position
from bcs.storage.redis.batch_codec import BatchKeys
from tests.support.events import registered, spellchecked
from tests.support.history_entries import AT_US
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def service(redis_url: str, module_database_url: str, kafka_bootstrap_servers: str) -> Iterator[RunningService]:
    with service_in_thread(
        redis_url=redis_url,
        database_url=module_database_url,
        kafka_bootstrap_servers=kafka_bootstrap_servers,
        max_essays_per_batch=3,
    ) as service:
        yield service


async def test_an_event_and_a_request_that_became_dead_letters_are_in_the_history(
    service: RunningService, orchestrator: Orchestrator, platform: Platform, batch: str, redis_url: str
) -> None:
    await platform.send(registered(batch, ["a", "b", "c"]))
    await wait_until(lambda: platform.caught_up(service.group))
    await platform.send(spellchecked(batch, "one-too-many"))
    path = f"/internal/v1/batches/{batch}/history"

    async def dead_letters() -> list[dict[str, object]]:
        entries: list[dict[str, object]] = (await orchestrator.request("GET", f"{path}?type=DeadLettered")).json[
            "entries"
        ]
        return entries

    [event] = await wait_until(dead_letters)
    assert event["facts"] == []
    assert str(event["reason"]).startswith("too_many_essays: ")
    assert isinstance(event["source"], dict)
    assert event["source"]["topic"] == "huleedu.batch.spellcheck.phase.completed.v1"
    for query in ("type=facts", "type=SpellcheckPhaseCompletedV1", "type=PhaseReported"):
        entries = (await orchestrator.request("GET", f"{path}?{query}")).json["entries"]
        assert "DeadLettered" not in [entry["event_type"] for entry in entries]

    other = f"{batch}-corrupt"
    async with Redis.from_url(redis_url) as redis:
        await redis.set(BatchKeys(service.service.settings.redis_key_prefix, other).facts, "not a hash")
    failed = await orchestrator.define(other, "ai_feedback")
    assert failed.status == 500
    path = f"/internal/v1/batches/{other}/history"
    [request] = await wait_until(dead_letters, ignoring=(KeyError,))
    assert str(request["reason"]).startswith("pipeline_resolution_failed: ")
    assert request["source"] is None


def test_a_person_reads_which_message_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    about = partial(
        entry_about, "batch", AT_US, entry_id=uuid.uuid4(), correlation_id="id", reason="too_large: 7 bytes"
    )
    entries = about(position=Position("topic", 2, 15)), about(asked_by="bos at 127.0.0.1")
    for entry in entries:
        assert entry is not None
        present(Group(*printed_lines(ArchivedEntry(1, entry))))
    printed = capsys.readouterr().out
    assert "the message topic/2/15 became a dead letter: too_large: 7 bytes" in printed
    assert "the request of bos at 127.0.0.1 became a dead letter: too_large: 7 bytes" in printed


@pytest.mark.parametrize("batch_id", [None, "", "x" * 256, "\ud800"])
def test_what_is_no_id_of_a_batch_gets_no_entry(batch_id: str | None) -> None:
    assert entry_about(batch_id, AT_US, entry_id=uuid.uuid4(), correlation_id=None, reason="not_json") is None
