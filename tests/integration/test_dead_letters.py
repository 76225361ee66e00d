"""A message that can't be applied goes to <topic>.DLQ with its bytes, and blocks nothing."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.structs import RecordMetadata

from bcs.errors import StoreUnavailable
from bcs.wire import topics
from bcs.wire.published import OutboundMessage
from tests.support.events import Event, cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

MAX_MESSAGE_BYTES = 1_000_000
KEPT_BYTES = 64 * 1024

GOOD: dict[str, Callable[[str], Event]] = {
    topics.SPELLCHECK_COMPLETED: lambda batch: spellchecked(batch, "essay"),
    topics.CJ_COMPLETED: lambda batch: cj_completed(batch, ["essay"]),
    topics.PHASE_OUTCOME: lambda batch: phase_outcome(batch, "nlp", ["essay"]),
    topics.ESSAYS_REGISTERED: lambda batch: registered(batch, ["essay"]),
}
BATCH_FIELD = {
    topics.SPELLCHECK_COMPLETED: "batch_id",
    topics.CJ_COMPLETED: "entity_id",
    topics.PHASE_OUTCOME: "batch_id",
    topics.ESSAYS_REGISTERED: "entity_id",
}
EVENT_TYPE = {
    topics.SPELLCHECK_COMPLETED: "SpellcheckPhaseCompletedV1",
    topics.CJ_COMPLETED: "CJAssessmentCompletedV1",
    topics.PHASE_OUTCOME: "ELSBatchPhaseOutcomeV1",
    topics.ESSAYS_REGISTERED: "BatchEssaysRegistered",
}
REQUIRED_FIELD = {
    topics.SPELLCHECK_COMPLETED: "status",
    topics.CJ_COMPLETED: "processing_summary",
    topics.PHASE_OUTCOME: "phase_status",
    topics.ESSAYS_REGISTERED: "essay_ids",
}


@pytest.fixture(scope="module")
def service_settings() -> dict[str, object]:
    return {"kafka_max_message_bytes": MAX_MESSAGE_BYTES}


def changed(event: Event, data: dict[str, Any] | None = None, *, remove: str | None = None) -> bytes:
    """The event's bytes with another content."""
    envelope = json.loads(event.value)
    if remove:
        del envelope["data"][remove]
    envelope["data"].update(data or {})
    return json.dumps(envelope, indent=1, ensure_ascii=False).encode()


def junk(topic: str, batch: str) -> dict[str, tuple[bytes | None, str | None]]:
    """Every kind of junk for a topic: its bytes, and the batch where they name it."""
    event = GOOD[topic](batch)
    field, required = BATCH_FIELD[topic], REQUIRED_FIELD[topic]
    messages: dict[str, tuple[bytes | None, str | None]] = {
        "null value": (None, None),
        "no bytes": (b"", None),
        "not UTF-8": (event.value.replace(b"tests", b"t\xe9sts"), None),
        "UTF-16": (event.value.decode().encode("utf-16"), None),
        "not JSON": (event.value[:-1], None),
        "two documents": (event.value + event.value, None),
        "nested without end": (b"[" * 50_000, None),
        "JSON array": (b"[" + event.value + b"]", None),
        "JSON text": (b'"a text"', None),
        "JSON null": (b"null", None),
        "data is null": (json.dumps({**json.loads(event.value), "data": None}).encode(), None),
        "no data": (b'{"event_id": "x"}', None),
        "empty object": (b" {\n} ", None),
        "missing field": (changed(event, remove=required), batch),
        "null field": (changed(event, {required: None}), batch),
        "NaN": (changed(event, {required: float("nan")}), batch),
        "empty batch id": (changed(event, {field: ""}), None),
        "batch id too long": (changed(event, {field: "x" * 256}), None),
        "batch id a number": (changed(event, {field: 7}), None),
        "no batch id": (changed(event, remove=field), None),
        "wrong time": (changed(event, {"timestamp": "gestern, 12 Uhr 🦉"}), batch),
    }
    if topic == topics.PHASE_OUTCOME:
        messages["unknown phase"] = (changed(event, {"phase_name": "dictation"}), batch)
    return messages


async def letters_about(platform: Platform, source: RecordMetadata) -> list[ConsumerRecord]:
    """The dead letters whose source position is this one."""

    def position(letter: ConsumerRecord) -> tuple[int, int]:
        about = json.loads(letter.value)["additional_metadata"]
        return about["source_partition"], about["source_offset"]

    letters = await platform.messages(f"{source.topic}.DLQ")
    return [letter for letter in letters if position(letter) == (source.partition, source.offset)]


async def dead_letters_counted(orchestrator: Orchestrator, topic: str) -> float:
    """By all reasons."""
    return sum(
        value
        for name, labels, value in await orchestrator.samples()
        if name == "bcs_dead_letters_total" and labels["topic"] == topic
    )


@pytest.mark.parametrize("topic", GOOD)
async def test_junk_of_every_kind_becomes_one_letter_and_holds_up_nothing(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str, topic: str
) -> None:
    kinds = junk(topic, batch)
    key = b"\xff one key: one partition, one order"
    labels = {"event_type": EVENT_TYPE[topic], "outcome": "dead_lettered"}
    processed_before = await orchestrator.metric("bcs_events_processed_total", **labels) or 0
    counted_before = await dead_letters_counted(orchestrator, topic)
    await platform.send(spellchecked(batch, "essay"))  # there is an essay to be judged by what comes behind the junk
    sent = dict(zip(kinds, await platform.send_raw(*((topic, key, value) for value, _ in kinds.values())), strict=True))
    behind = GOOD[topic](batch)
    [last] = await platform.send_raw((topic, key, behind.value))
    assert {position.partition for position in sent.values()} == {last.partition}

    await wait_until(lambda: platform.caught_up(service.group), description="offsets are committed past all of it")
    assert await orchestrator.metric("bcs_events_processed_total", **labels) == processed_before + len(kinds)
    assert await dead_letters_counted(orchestrator, topic) == counted_before + len(kinds)
    for kind, position in sent.items():
        value, named = kinds[kind]
        letters = await wait_until(partial(letters_about, platform, position), description=kind)
        assert len(letters) == 1, kind
        assert_is_the_letter(letters[0], position, key, value, named)


def assert_is_the_letter(
    record: ConsumerRecord, source: RecordMetadata, key: bytes, value: bytes | None, batch: str | None
) -> None:
    letter: dict[str, Any] = json.loads(record.value, parse_constant=pytest.fail)
    assert letter["schema_version"] == 1
    assert letter["service"] == "batch_conductor_service"
    assert letter["dlq_reason"]
    assert datetime.fromisoformat(letter["timestamp"]).utcoffset() is not None
    about = letter["additional_metadata"]
    assert about["source_topic"] == source.topic
    assert (about["source_partition"], about["source_offset"]) == (source.partition, source.offset)
    assert base64.b64decode(about["source_key_base64"]) == key
    assert about["attempts"] == 1
    assert about["error_type"]
    assert about["error_message"]
    assert record.key == (key if batch is None else batch.encode())
    envelope = letter["failed_event_envelope"]
    if value is None:
        assert envelope == {"raw_base64": None}
    elif set(envelope) == {"raw_base64"}:
        assert base64.b64decode(envelope["raw_base64"]) == value
        assert not is_json_object(value)
    else:
        assert value in record.value, "a JSON object stands in its letter byte for byte"
        assert envelope == json.loads(value)


def is_json_object(value: bytes) -> bool:
    try:
        return isinstance(json.loads(value.decode(), parse_constant=lambda _: 1 / 0), dict)
    except (ValueError, ArithmeticError, RecursionError):
        return False


async def test_the_events_behind_junk_are_applied(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str
) -> None:
    essays = [f"essay-{number}" for number in range(50)]
    await platform.send(registered(batch, essays))
    for essay in essays:
        good = spellchecked(batch, essay)
        await platform.send_raw((good.topic, good.key, b"junk"), (good.topic, good.key, good.value))
    await wait_until(lambda: platform.caught_up(service.group))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_the_offset_of_junk_waits_until_its_dead_letter_is_stored(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    append = service.service.outbox.append

    async def lose_replies(messages: Sequence[OutboundMessage]) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            await append(messages)
        raise StoreUnavailable("redis", "the test says so")

    with monkeypatch.context() as patch:
        patch.setattr(service.service.outbox, "append", lose_replies)
        [sent] = await platform.send_raw((topics.SPELLCHECK_COMPLETED, batch.encode(), b"junk"))
        # Between two tries there is time for more than one commit of offsets.
        await wait_until(lambda: tries >= 4)
        assert await platform.uncommitted(service.group) != {}
    await wait_until(lambda: platform.caught_up(service.group))
    await wait_until(lambda: empty_outbox(orchestrator), description="nothing is stuck in the outbox")
    assert len(await letters_about(platform, sent)) == 1, "however often it was stored"


async def test_a_letter_too_large_for_the_broker_arrives_reduced_and_says_so(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str
) -> None:
    large = bytes(range(256)) * 3516  # 900 kB, and a third more as base64
    assert len(large) < MAX_MESSAGE_BYTES < len(base64.b64encode(large))
    smaller = b"\xff" * 500_000
    topic = topics.SPELLCHECK_COMPLETED
    behind = spellchecked(batch, "essay")
    first, second, third = await platform.send_raw(
        (topic, b"key", large), (topic, b"key", smaller), (topic, b"key", b"small")
    )
    await platform.send(behind)
    await wait_until(lambda: platform.caught_up(service.group))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]

    [reduced] = await wait_until(lambda: letters_about(platform, first))
    assert len(reduced.value) < 2 * KEPT_BYTES
    letter = json.loads(reduced.value)
    assert base64.b64decode(letter["failed_event_envelope"]["raw_base64"]) == large[:KEPT_BYTES]
    about = letter["additional_metadata"]
    assert about["truncated"] is True
    assert "too large" in about["note"]
    assert about["value_bytes"] == len(large)
    assert about["value_sha256"] == hashlib.sha256(large).hexdigest()
    assert about["source_topic"] == topic
    for position, value in ((second, smaller), (third, b"small")):
        [letter_record] = await wait_until(partial(letters_about, platform, position))
        assert_is_the_letter(letter_record, position, b"key", value, None)
    await wait_until(lambda: empty_outbox(orchestrator), description="nothing is stuck in the outbox")


async def test_a_record_that_decompresses_to_much_takes_little_room_in_the_store(
    service: RunningService,
    platform: Platform,
    kafka_bootstrap_servers: str,
    batch: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = b"\xff" * 8_000_000
    middling = [b"\xff%d" % number * 100_000 for number in range(10, 30)]
    appended: list[list[int]] = []
    append = service.service.outbox.append

    async def noted(messages: Sequence[OutboundMessage]) -> None:
        appended.append([message.size_bytes + len(message.truncated or b"") for message in messages])
        await append(messages)

    topic = topics.SPELLCHECK_COMPLETED
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_bootstrap_servers, compression_type="gzip", max_request_size=10_000_000
    )
    with monkeypatch.context() as patch:
        patch.setattr(service.service.outbox, "append", noted)
        await producer.start()
        position = await producer.send_and_wait(topic, large, batch.encode())
        await producer.stop()
        others = await platform.send_raw(*((topic, batch.encode(), value) for value in middling))
        await wait_until(lambda: platform.caught_up(service.group))
    assert sum(map(len, appended)) == 21
    assert max(map(sum, appended)) < 2_000_000, "a round trip to the store has a deadline"
    [letter] = await wait_until(lambda: letters_about(platform, position))
    document = json.loads(letter.value)
    assert document["dlq_reason"] == "too_large"
    about = document["additional_metadata"]
    assert (about["truncated"], about["value_bytes"]) == (True, len(large))
    assert about["value_sha256"] == hashlib.sha256(large).hexdigest()
    for source in others:
        assert len(await wait_until(partial(letters_about, platform, source))) == 1


async def empty_outbox(orchestrator: Orchestrator) -> bool:
    return await orchestrator.metric("bcs_outbox_backlog") == 0
