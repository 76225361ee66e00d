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
from bcs.domain.dead_lettered import entry_about, replay_entry
from bcs.domain.history import ArchivedEntry, Position
from bcs.ops.operators import operator
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.wire import topics
from bcs.wire.dead_letters.decode import read_replay
from bcs.wire.dead_letters.encode import REPLAYED_BY, REPLAYED_FROM
from tests.support.commands import bcs, settings_of
from tests.support.events import registered, spellchecked
from tests.support.history_entries import AT_US
from tests.support.kafka import Platform
from tests.support.service import DEFINE, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LETTERS = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)


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


async def test_a_replay_is_in_the_history_with_who_replayed_which_dead_letter(
    service: RunningService, orchestrator: Orchestrator, platform: Platform, batch: str
) -> None:
    path = f"/internal/v1/batches/{batch}/history?type=DeadLetterReplayed"

    async def replays(count: int) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = (await orchestrator.request("GET", path)).json.get("entries", [])
        return entries if len(entries) == count else []

    position = {"topic": LETTERS, "partition": 0, "offset": 15}
    headers = ((REPLAYED_FROM, f"{LETTERS}/0/15".encode()), (REPLAYED_BY, b"elsa@laptop"))
    await platform.send(registered(batch, ["a", "b", "c"]), headers=headers)
    # Refused once more: nothing comes of the replay but this entry, and a dead letter.
    await platform.send(spellchecked(batch, "one-too-many"), headers=headers)
    for entry in await wait_until(lambda: replays(2)):
        assert (entry["source"], entry["reported_by"], entry["facts"]) == (position, "elsa@laptop", [])
        assert entry["correlation_id"]

    body = {"batch_id": batch, "requested_pipeline": "nlp", "correlation_id": "replayed"}
    sent = {"X-BCS-Replayed-From": f"{LETTERS}/0/15", "User-Agent": "bcs/1 (elsa@laptop)"}
    assert (await orchestrator.request("POST", DEFINE, json={**body, "dry_run": True}, headers=sent)).status == 200
    assert (await orchestrator.request("POST", DEFINE, json=body, headers=sent)).status == 200
    newest, *_ = await wait_until(lambda: replays(3))
    assert (newest["source"], newest["correlation_id"]) == (position, "replayed")
    assert str(newest["reported_by"]).startswith("bcs/1 (elsa@laptop) at ")
    for query in ("type=facts", "type=DeadLettered"):
        entries = (await orchestrator.request("GET", f"/internal/v1/batches/{batch}/history?{query}")).json["entries"]
        assert "DeadLetterReplayed" not in [entry["event_type"] for entry in entries]


@pytest.mark.release
async def test_the_command_says_who_replays(
    service: RunningService, orchestrator: Orchestrator, platform: Platform, batch: str, redis_url: str
) -> None:
    await platform.send(registered(batch, ["a", "b", "c"]))
    await wait_until(lambda: platform.caught_up(service.group))
    await platform.send(spellchecked(batch, "one-too-many"))
    await wait_until(lambda: platform.messages(LETTERS, batch))
    other = f"{batch}-corrupt"
    async with Redis.from_url(redis_url) as redis:
        await redis.set(BatchKeys(service.service.settings.redis_key_prefix, other).facts, "not a hash")
    assert (await orchestrator.define(other, "ai_feedback")).status == 500
    await wait_until(lambda: platform.messages("huleedu.pipelines.resolution.DLQ", other))
    settings = {**settings_of(service), "BCS_KAFKA_ENABLE_IDEMPOTENCE": False}
    for name in (batch, other):
        ran = await bcs("dlq", "replay", "--batch", name, "--url", service.base, **settings)
        assert "1 of 1 dead letters replayed" in ran.output, ran

        async def replays() -> list[dict[str, object]]:
            path = f"/internal/v1/batches/{name}/history?type=DeadLetterReplayed"  # noqa: B023 (awaited at once)
            entries: list[dict[str, object]] = (await orchestrator.request("GET", path)).json.get("entries", [])
            return entries

        [entry] = await wait_until(replays)
        assert operator() in str(entry["reported_by"])


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((REPLAYED_BY, b"elsa"),),
        ((REPLAYED_FROM, None),),
        *(((REPLAYED_FROM, text),) for text in (b"", b"topic/0/1", b"\xff", b"/0/1")),
        *(((REPLAYED_FROM, f"{LETTERS}/{rest}".encode()),) for rest in ("", "0", "0/", "0/x", "-1/1", "0/1/2", "0/²")),
    ],
)
def test_headers_that_name_no_dead_letter_are_no_replay(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert read_replay(headers) is None


def test_a_person_reads_which_message_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    about = partial(
        entry_about, "batch", AT_US, entry_id=uuid.uuid4(), correlation_id="id", reason="too_large: 7 bytes"
    )
    entries = about(position=Position("topic", 2, 15)), about(asked_by="bos at 127.0.0.1")
    replayed = replay_entry(
        "batch",
        AT_US,
        entry_id=uuid.uuid4(),
        correlation_id="id",
        position=Position(LETTERS, 0, 3),
        operator="elsa@laptop",
    )
    for entry in (*entries, replayed):
        assert entry is not None
        present(Group(*printed_lines(ArchivedEntry(1, entry))))
    printed = capsys.readouterr().out
    assert "the message topic/2/15 became a dead letter: too_large: 7 bytes" in printed
    assert f"the dead letter {LETTERS}/0/3 was replayed by elsa@laptop" in printed
    assert "the request of bos at 127.0.0.1 became a dead letter: too_large: 7 bytes" in printed


@pytest.mark.parametrize("batch_id", [None, "", "x" * 256, "\ud800"])
def test_what_is_no_id_of_a_batch_gets_no_entry(batch_id: str | None) -> None:
    assert entry_about(batch_id, AT_US, entry_id=uuid.uuid4(), correlation_id=None, reason="not_json") is None
    assert (
        replay_entry(
            batch_id,
            AT_US,
            entry_id=uuid.uuid4(),
            correlation_id=None,
            position=Position(LETTERS, 0, 3),
            operator="elsa@laptop",
        )
        is None
    )
