"""Dead letters on Apache Kafka are listed, shown, and replayed byte for byte."""

import base64
import json
import random
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from bcs.domain.facts import Fact
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.state import delta_of
from bcs.ops.dlq.reading import position_of
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from bcs.wire.dead_letters.decode import read_dead_letter
from bcs.wire.dead_letters.encode import ORIGINAL_TIMESTAMP, unread_dead_letter
from bcs.wire.decoding import EventDecoder
from tests.kafka.operator import Operator
from tests.kafka.services import SESSION_SECONDS
from tests.support.events import Event, phase_outcome, registered, spellchecked
from tests.support.kafka import PARTITIONS, Platform, configured
from tests.support.laws import LAW
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

# 10,000 events in all in full size, and a third of that in the usual run.
BATCHES, ESSAYS = 316 if IN_FULL else 100, 30
# Poisoned in six ways: 200 together. What an operator can mend is a phase that nobody knew, and a batch's broken key.
POISONED = {
    "not_json": 34,
    "not_utf8": 34,
    "null_value": 33,
    "invalid_event": 33,
    "unknown_phase": 33,
    "processing_failed": 33,
}
MENDED = ("unknown_phase", "processing_failed")
NEW_PHASE = "grammar"
SECONDS = 30
SPELLCHECK_LETTERS = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)


@dataclass
class Scene:
    """A broker of its own, a service on it, and an operator.

    :param directory: for the service's files.
    """

    kafka: str
    redis_url: str
    prefix: str
    directory: Path
    platform: Platform
    gateway: RedisGateway

    @property
    def store(self) -> RedisStateStore:
        """The service's state store."""
        return RedisStateStore(self.gateway, law=LAW, key_prefix=self.prefix, ttl_seconds=1000)

    @property
    def operator(self) -> Operator:
        """Someone at a command line, with the service's settings."""
        return Operator(kafka_bootstrap_servers=self.kafka, redis_url=self.redis_url, redis_key_prefix=self.prefix)

    @asynccontextmanager
    async def service(self, **settings: object) -> AsyncIterator[BcsProcess]:
        """The service, until the block ends."""
        chosen = {
            "BCS_REDIS_KEY_PREFIX": self.prefix,
            "BCS_KAFKA_CONSUMER_GROUP_ID": self.prefix,
            "BCS_KAFKA_ENABLE_IDEMPOTENCE": True,
            "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": SESSION_SECONDS,
            "BCS_REDIS_BREAKER_FAILURES": 1000,
            **settings,
        }
        with serve(self.directory, self.redis_url, self.kafka, **chosen) as process:
            await process.answers()
            yield process

    async def caught_up(self) -> bool:
        """Whether everything that was sent is dealt with."""
        return await self.platform.caught_up(self.prefix)

    async def letters(self, waiting: int, *selected: str) -> list[dict[str, Any]]:
        """The groups of dead letters, once so many wait."""

        groups: list[dict[str, Any]] = []

        async def so_many() -> bool:
            groups[:] = (await self.operator.asks("dlq", "list", *selected))["groups"]
            return bool(sum(group["waiting"] for group in groups) >= waiting)

        await wait_until(so_many, SECONDS)
        return groups

    async def each(self, *selected: str) -> list[dict[str, Any]]:
        """All dead letters, one by one."""
        letters: list[dict[str, Any]] = (await self.operator.asks("dlq", "list", "--each", *selected))["dead_letters"]
        return letters


async def empty_all_topics(address: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    places = [
        TopicPartition(topic, number) for topic in (*topics.CONSUMED, *topics.PUBLISHED) for number in range(PARTITIONS)
    ]

    async def emptied() -> bool:
        await admin.delete_records({place: RecordsToDelete(-1) for place in places})  # to the end, whatever that is
        return True

    # A topic that was just created has no leader yet.
    await wait_until(emptied, SECONDS, ignoring=(KafkaError,))
    await admin.close()


@pytest.fixture
async def scene(kafka_to_empty: str, redis_url: str, redis_key_prefix: str, tmp_path: Path) -> AsyncIterator[Scene]:
    await empty_all_topics(kafka_to_empty)
    gateway = RedisGateway(
        redis_url, max_connections=4, deadline_seconds=10, breaker_failures=1000, breaker_open_seconds=1
    )
    async with Platform(kafka_to_empty) as platform:
        yield Scene(kafka_to_empty, redis_url, redis_key_prefix, tmp_path / "service", platform, gateway)
    await gateway.aclose()


def poison(way: str, number: int) -> Event:
    event = spellchecked(f"batch-{number}", f"late-{number}")
    bodies: dict[str, bytes | None] = {
        "not_json": b"{%d" % number,
        "not_utf8": b'{"data": "\xff%d"}' % number,
        "null_value": None,
        "invalid_event": b'{"data": {"batch_id": "batch-%d"}}' % number,
    }
    if way in bodies:
        return replace(event, value=bodies[way])  # type: ignore[arg-type] # a null is the point of one of them
    if way == "unknown_phase":
        return phase_outcome(f"batch-{number}", NEW_PHASE, [f"essay-{essay}" for essay in range(ESSAYS)], [])
    return spellchecked(f"broken-{number}", "essay")


@pytest.mark.release
async def test_ten_thousand_events_with_two_hundred_poisoned(scene: Scene, tmp_path: Path) -> None:
    good: list[Event] = []
    for number in range(BATCHES):
        essays = [f"essay-{essay}" for essay in range(ESSAYS)]
        good += [registered(f"batch-{number}", essays), *(spellchecked(f"batch-{number}", essay) for essay in essays)]
    bad = {way: [poison(way, number) for number in range(count)] for way, count in POISONED.items()}
    poisoned = [event for events in bad.values() for event in events]
    assert len(poisoned) == 200
    keys = [BatchKeys(scene.prefix, f"broken-{number}").facts for number in range(POISONED["processing_failed"])]
    await scene.gateway.call(*(("SET", key, "junk", "PX", 600_000) for key in keys))
    good += [spellchecked("batch-0", f"extra-{number}") for number in range(4)]
    mixed = [*good, *poisoned]
    random.Random(5).shuffle(mixed)
    assert len(mixed) == (10_000 if IN_FULL else 3_304)
    sent = await scene.platform.send(*mixed)

    async with scene.service():
        await wait_until(scene.caught_up, SECONDS)
        groups = await scene.letters(len(poisoned))
        found: Counter[str] = Counter()
        for group in groups:
            found[group["reason"]] += group["waiting"]
            assert group["replayed"] == 0
            assert group["oldest"] <= group["newest"]
        assert found == POISONED
        letters = await scene.each()
        assert len(letters) == len({letter["position"] for letter in letters}) == len(poisoned)
        await shown(scene, letters, bad)

    # The cause is mended: the phase is configured, and what lay under the batches' keys is gone.
    await scene.gateway.call(("DEL", *keys))
    configuration = tmp_path / "pipelines.yaml"
    configuration.write_text(f"phases: [{{name: spellcheck}}, {{name: {NEW_PHASE}}}]\n")
    async with scene.service(BCS_PIPELINE_CONFIG_PATH=configuration):
        reasons = [part for reason in MENDED for part in ("--reason", reason)]
        planned = (await scene.operator.asks("dlq", "replay", "--dry-run", *reasons))["would_replay"]
        mended = sum(POISONED[reason] for reason in MENDED)
        assert len(planned) == mended

        async def replayed() -> int:
            return sum(letter["replayed"] for letter in await scene.each(*reasons))

        with scene.operator.running("dlq", "replay", *reasons, "--rate", "5"):
            await wait_until(replayed, SECONDS)
        done = await replayed()
        assert 0 < done < mended, "it was killed half way"
        again = await scene.operator.asks("dlq", "replay", *reasons)
        assert again["selected"] == again["replayed"] == mended - done
        assert await replayed() == mended
        nothing = await scene.operator.asks("dlq", "replay", *reasons)
        assert nothing["selected"] == 0

        expected = facts_of(mixed, [where.timestamp for where in sent])

        async def as_the_model_says() -> bool:
            for batch in expected:
                if await scene.store.state(batch) != delta_of(expected[batch]):
                    return False
            return True

        await wait_until(as_the_model_says, SECONDS)

        # What can't be mended fails again: one letter more for each, which counts.
        count = POISONED["not_json"]
        assert (await scene.operator.asks("dlq", "replay", "--reason", "not_json"))["replayed"] == count
        await scene.letters(count, "--reason", "not_json")
        letters = await scene.each("--reason", "not_json")
        assert Counter((letter["replayed"], letter["failures"]) for letter in letters) == {
            (True, 1): count,
            (False, 2): count,
        }
        await shown(scene, [letter for letter in letters if letter["failures"] == 2], {"not_json": bad["not_json"]})


async def shown(scene: Scene, letters: list[dict[str, Any]], bad: dict[str, list[Event]]) -> None:
    """All dead letters have the bytes of their originals; `show` is checked for one of each kind."""
    by_reference = {}
    for topic in {letter["position"].split("/")[0] for letter in letters}:
        for record in await scene.platform.messages(topic):
            by_reference[str(position_of(record))] = record
    found: dict[str, Counter[bytes | None]] = defaultdict(Counter)
    for letter in letters:
        record = by_reference[letter["position"]]
        read = read_dead_letter(position_of(record), record.key, record.value, record.headers)
        found[letter["reason"]][read.value] += 1
        assert read.failures == letter["failures"]
    assert found == {way: Counter(event.value for event in events) for way, events in bad.items()}
    for way in bad:
        letter = next(letter for letter in letters if letter["reason"] == way)
        document = await scene.operator.asks("dlq", "show", letter["position"])
        raw = None if document["value_base64"] is None else base64.b64decode(document["value_base64"])
        assert raw in {event.value for event in bad[way]}
        assert document["reason"] == way
        plain = await scene.operator.runs("dlq", "show", letter["position"])
        assert way in plain.output


def facts_of(events: list[Event], times_ms: list[int]) -> dict[str, list[Fact]]:
    """The facts of these events for a service with the new phase."""
    decoder = EventDecoder(PLATFORM_PHASES | {NEW_PHASE})
    facts: dict[str, list[Fact]] = defaultdict(list)
    for event, time_ms in zip(events, times_ms, strict=True):
        try:
            decoded = decoder.decode(event.topic, event.value, time_ms)
        except Exception:  # noqa: BLE001, S112 (what can't be decoded says nothing)
            continue
        facts[decoded.batch_id] += decoded.facts
    return facts


LARGE = 900_000
TIME_MS = 1_700_000_000_000
ORIGINALS: dict[str, tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = {
    "invalid UTF-8": (b"key", b"\xff\xfe", []),
    "700 kB": (b"key", b'{"a": "' + b"x" * 700_000 + b'"}', []),
    "more than a letter can hold": (b"key", b"\xff" * LARGE, [("a", b"1")]),
    "null": (b"key", None, []),
    "null, without a key": (None, None, []),
    "empty": (None, b"", []),
    "headers with one name, and with none": (b"\xff", b"x", [("a", b"1"), ("b", b"\xff"), ("a", b"2"), ("a", None)]),
}


async def produced(scene: Scene, *originals: str, topic: str = topics.SPELLCHECK_COMPLETED) -> None:
    """Put these on one partition of a topic as they are; aiokafka's own send() refuses one of them."""
    producer = AIOKafkaProducer(bootstrap_servers=scene.kafka, max_request_size=1_000_000)
    await producer.start()
    try:
        for original in originals:
            key, value, headers = ORIGINALS[original]
            batch = producer.create_batch()
            batch.append(timestamp=TIME_MS, key=key, value=value, headers=headers)
            await (await producer.send_batch(batch, topic, partition=1))
    finally:
        await producer.stop()


def as_they_were(records: list[ConsumerRecord]) -> list[tuple[object, ...]]:
    """Sorted, so that the order of arrival does not matter."""
    seen = [
        (record.key, record.value, [header for header in record.headers if not header[0].startswith("dlt-")])
        for record in records
        if (record.partition, record.timestamp) == (1, TIME_MS)
    ]
    return sorted(seen, key=repr)


async def test_what_is_put_back_is_what_was_there(scene: Scene) -> None:
    count = len(ORIGINALS)
    await produced(scene, *ORIGINALS)
    first = as_they_were(await scene.platform.messages(topics.SPELLCHECK_COMPLETED))
    assert first == sorted(((key, value, headers) for key, value, headers in ORIGINALS.values()), key=repr)
    async with scene.service():
        await scene.letters(count)
        assert (await scene.operator.asks("dlq", "replay", "--all"))["replayed"] == count
        records = await scene.platform.messages(topics.SPELLCHECK_COMPLETED)
        assert as_they_were(records) == sorted([*first, *first], key=repr)
        await scene.letters(count)
        failures = Counter((letter["failures"], letter["replayed"]) for letter in await scene.each())
        assert failures == {(1, True): count, (2, False): count}


async def test_a_replay_keeps_the_time_also_where_the_topic_stamps_it_anew(scene: Scene, tmp_path: Path) -> None:
    """The event has no time but Kafka's."""
    async with configured(scene.kafka, {topics.PHASE_OUTCOME: {"message.timestamp.type": "LogAppendTime"}}):
        envelope = json.loads(phase_outcome("batch", NEW_PHASE, ["essay"]).value)
        value = json.dumps({**envelope, "event_timestamp": None}).encode()
        await scene.platform.send_raw((topics.PHASE_OUTCOME, b"batch", value))
        async with scene.service():
            await scene.letters(1)
        configuration = tmp_path / "pipelines.yaml"
        configuration.write_text(f"phases: [{{name: spellcheck}}, {{name: {NEW_PHASE}}}]\n")
        async with scene.service(BCS_PIPELINE_CONFIG_PATH=configuration):
            assert (await scene.operator.asks("dlq", "replay", "--all"))["replayed"] == 1
            await wait_until(lambda: has_outcome(scene, "batch"), SECONDS)
    first, again = await scene.platform.messages(topics.PHASE_OUTCOME)
    assert again.timestamp > first.timestamp, "the topic stamped it anew"
    [ending] = (await scene.store.state("batch")).outcomes[NEW_PHASE].values()
    assert ending.at_us == first.timestamp * 1000


async def has_outcome(scene: Scene, batch: str) -> bool:
    return NEW_PHASE in (await scene.store.state(batch)).outcomes


async def test_an_original_that_is_gone_is_named_and_its_letter_stays(scene: Scene) -> None:
    await produced(scene, "more than a letter can hold")
    [first] = await scene.platform.messages(topics.SPELLCHECK_COMPLETED)
    async with scene.service():
        await scene.letters(1)
        admin = AIOKafkaAdminClient(bootstrap_servers=scene.kafka)
        await admin.start()
        await admin.delete_records({TopicPartition(first.topic, first.partition): RecordsToDelete(first.offset + 1)})
        await admin.close()
        said = await scene.operator.runs("dlq", "replay", "--all")
        assert said.exit_code == 1
        assert "no longer exists" in said.error
        assert f"{first.topic}/{first.partition}/{first.offset}" in said.error
        assert "0 of 1 dead letters replayed" in said.output
        [group] = await scene.letters(1)
        assert (group["waiting"], group["replayed"]) == (1, 0)


@pytest.mark.release
async def test_a_dead_letter_without_its_original_replays_from_its_position(scene: Scene) -> None:
    await produced(scene, "headers with one name, and with none")
    [there] = await scene.platform.messages(topics.SPELLCHECK_COMPLETED)
    gone = there.offset + 5
    detail = {"error_type": "Skipped", "error_message": "the disk was broken"}
    producer = AIOKafkaProducer(bootstrap_servers=scene.kafka)
    await producer.start()
    for offset in (there.offset, gone):
        letter = unread_dead_letter(
            there.topic, there.partition, offset, "skipped_by_operator", detail, datetime.now(UTC)
        )
        await producer.send_and_wait(letter.topic, letter.value, letter.key, headers=list(letter.headers))
    await producer.stop()
    [first, _] = await scene.each("--reason", "skipped_by_operator")
    shown = await scene.operator.runs("dlq", "show", first["position"])
    assert "the disk was broken" in shown.output
    assert f"reads the message at {there.topic}/{there.partition}/" in shown.output
    said = await scene.operator.runs("dlq", "replay", "--all")
    assert said.exit_code == 1
    assert f"has nothing of its original, and {there.topic}/{there.partition}/{gone} no longer exists" in said.error
    assert sorted(letter["replayed"] for letter in await scene.each()) == [False, True]
    records = await scene.platform.messages(topics.SPELLCHECK_COMPLETED)
    assert len(records) == 2
    assert as_they_were(records[:1]) == as_they_were(records[1:])


@pytest.mark.release
async def test_a_resolution_that_failed_is_asked_again_and_counted(scene: Scene) -> None:
    keys = BatchKeys(scene.prefix, "broken")
    await scene.gateway.call(("SET", keys.facts, "junk", "PX", 600_000))
    async with scene.service() as service, Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.define("broken")).status == 500
        [group] = await scene.letters(1)
        assert group["topic"] == topics.dead_letter_topic(topics.RESOLUTION)
        for failures in (2, 3):
            # It fails again: a letter that goes on counting takes the place of the one before.
            assert (await scene.operator.asks("dlq", "replay", "--all", "--url", service.base))["replayed"] == 1
            await scene.letters(1)
            waiting = [letter for letter in await scene.each() if not letter["replayed"]]
            assert [letter["failures"] for letter in waiting] == [failures]
        await scene.gateway.call(("DEL", keys.facts))
        assert (await scene.operator.asks("dlq", "replay", "--all", "--url", service.base))["replayed"] == 1
        assert all(letter["replayed"] for letter in await scene.each())
        assert await orchestrator.metric("bcs_pipeline_resolutions_total", status="success") == 1


async def test_whoever_else_answers_has_resolved_nothing(scene: Scene, free_port: int) -> None:
    keys = BatchKeys(scene.prefix, "broken")
    await scene.gateway.call(("SET", keys.facts, "junk", "PX", 600_000))
    async with scene.service() as service, Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.define("broken")).status == 500
        await scene.letters(1)

        async def welcome(_: web.Request) -> web.Response:
            return web.Response(text="<html>welcome</html>")

        async def elsewhere(request: web.Request) -> web.Response:
            raise web.HTTPFound("/welcome")

        application = web.Application()
        application.router.add_get("/welcome", welcome)
        application.router.add_post("/moved/internal/v1/pipelines/define", elsewhere)
        application.router.add_post("/internal/v1/pipelines/define", welcome)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", free_port).start()
        for path in ("", "/moved"):
            said = await scene.operator.runs("dlq", "replay", "--all", "--url", f"http://127.0.0.1:{free_port}{path}")
            assert said.exit_code == 1
            assert "0 of 1 dead letters replayed" in said.output
        await runner.cleanup()


async def test_what_the_broker_refuses_is_not_marked_and_the_rest_goes_on(scene: Scene) -> None:
    """The acknowledgement counts, not that it was sent."""
    large, small = b"{" + random.Random(7).randbytes(5_000), b"{small"
    await scene.platform.send_raw((topics.ESSAYS_REGISTERED, b"key", large), (topics.CJ_COMPLETED, b"key", small))
    # The second has no key.
    await produced(scene, "invalid UTF-8", "empty", "null", topic=topics.PHASE_OUTCOME)
    async with scene.service():
        await scene.letters(5)
    stricter = {
        topics.ESSAYS_REGISTERED: {"max.message.bytes": "1000"},
        topics.PHASE_OUTCOME: {"cleanup.policy": "compact"},
    }
    async with configured(scene.kafka, stricter):
        said = await scene.operator.runs("dlq", "replay", "--all")
    assert said.exit_code == 1
    assert "MESSAGE_SIZE_TOO_LARGE" in said.error
    assert "INVALID_RECORD" in said.error
    states = Counter((letter["position"].partition("/")[0], letter["replayed"]) for letter in await scene.each())
    assert states == {
        (topics.dead_letter_topic(topics.ESSAYS_REGISTERED), False): 1,
        (topics.dead_letter_topic(topics.CJ_COMPLETED), True): 1,
        (topics.dead_letter_topic(topics.PHASE_OUTCOME), True): 2,
        (topics.dead_letter_topic(topics.PHASE_OUTCOME), False): 1,
    }


@pytest.mark.release
async def test_an_original_goes_back_where_old_times_and_raw_sizes_are_refused(scene: Scene) -> None:
    """A header says when the original was written."""
    await produced(scene, "empty", "more than a letter can hold")
    async with scene.service():
        await scene.letters(2)
    compressible_only = str(LARGE // 2)
    stricter = {"message.timestamp.before.max.ms": "3600000", "max.message.bytes": compressible_only}
    async with configured(scene.kafka, {topics.SPELLCHECK_COMPLETED: stricter}):
        assert (await scene.operator.asks("dlq", "replay", "--all"))["replayed"] == 2
    records = await scene.platform.messages(topics.SPELLCHECK_COMPLETED)
    assert len(records) == 4
    for record in records:
        replayed = dict(record.headers).get(ORIGINAL_TIMESTAMP)
        assert (record.timestamp, replayed) == (TIME_MS, None) or replayed == str(TIME_MS).encode()
    assert Counter(record.value for record in records) == {b"": 2, b"\xff" * LARGE: 2}


async def test_asked_to_stop_it_marks_what_was_acknowledged(scene: Scene) -> None:
    count = 200  # ten seconds of replaying, of which the stop cuts off most
    await scene.platform.send_raw(*((topics.SPELLCHECK_COMPLETED, b"key", b"{%d" % number) for number in range(count)))
    async with scene.service():
        await scene.letters(count)

    async def put_back() -> int:
        return len(await scene.platform.messages(topics.SPELLCHECK_COMPLETED)) - count

    with scene.operator.running("dlq", "replay", "--all", "--rate", "20", ended_by=signal.SIGINT):
        await wait_until(put_back, SECONDS)
    marked = sum(letter["replayed"] for letter in await scene.each())
    assert 0 < marked < count
    assert marked == await put_back()


async def test_a_list_ends_although_letters_go_on_coming(scene: Scene) -> None:
    letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    over = anyio.Event()

    async def write() -> None:
        while not over.is_set():
            await scene.platform.send_raw((letters, b"key", b"junk"))

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        await wait_until(lambda: scene.platform.messages(letters), SECONDS)
        assert (await scene.operator.runs("dlq", "list")).exit_code == 0
        over.set()


async def test_what_is_no_letter_is_shown_and_purged_by_kafka_s_time(scene: Scene) -> None:
    letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    await scene.platform.send_raw((letters, b"replayed:" + b"9" * 5000, None), (letters, b"key", b"\xffjunk"))
    listed = await scene.operator.asks("dlq", "list", "--each")
    assert len(listed["unreadable"]) == 2
    for reference in listed["unreadable"]:
        said = await scene.operator.runs("dlq", "show", reference)
        assert (said.exit_code, "Traceback" in said.error) == (1, False)
    kept = await scene.operator.asks("dlq", "purge", "--yes", "--before", "2001-01-01T00:00:00Z")
    assert kept["deleted"] == 0
    assert (await scene.operator.asks("dlq", "purge", "--yes"))["deleted"] == 2


async def test_a_topic_that_does_not_exist_is_told(scene: Scene) -> None:
    said = await scene.operator.runs("dlq", "list", "--topic", "typo")
    assert (said.exit_code, said.output) == (1, "")
    assert "there is no topic typo.DLQ" in said.error


@pytest.mark.release
async def test_purge_asks_and_deletes_what_is_older(scene: Scene) -> None:
    await scene.platform.send_raw(*((topics.SPELLCHECK_COMPLETED, b"key", b"{%d" % number) for number in range(3)))
    async with scene.service():
        await scene.letters(3)
        refused = await scene.operator.runs("dlq", "purge", given="n\n")
        assert refused.exit_code == 1
        assert "3 dead letters would be deleted for good, 3 of them never replayed" in refused.output
        newest = max(letter["time"] for letter in await scene.each())
        await scene.letters(3)
        kept = await scene.operator.runs("dlq", "purge", "--yes", "--before", "2001-01-01T00:00:00Z")
        assert "nothing to delete" in kept.output
        await scene.platform.send_raw((topics.SPELLCHECK_COMPLETED, b"key", b"{later"))
        await scene.letters(4)
        later = max(letter["time"] for letter in await scene.each())
        assert later > newest
        assert (await scene.operator.runs("dlq", "purge", "--yes", "--before", later)).exit_code == 0
        assert [letter["time"] for letter in await scene.each()] == [later]
        assert (await scene.operator.runs("dlq", "purge", "--yes")).exit_code == 0
        assert await scene.each() == []


async def test_without_kafka_a_command_says_so(free_port: int) -> None:
    operator = Operator(kafka_bootstrap_servers=f"127.0.0.1:{free_port}", kafka_request_timeout_seconds=2)
    said = await operator.runs("dlq", "list")
    assert said.exit_code == 1
    assert said.error.startswith("bcs: kafka is out of reach")
    assert "Traceback" not in said.error


@pytest.mark.parametrize(
    "arguments", [("replay",), ("replay", "x"), ("replay", "a/0/9-3"), ("list", "--since", "soon"), ("show", "a/b/c")]
)
async def test_wrong_usage_is_told_without_asking_kafka(free_port: int, arguments: tuple[str, ...]) -> None:
    said = await Operator(kafka_bootstrap_servers=f"127.0.0.1:{free_port}").runs("dlq", *arguments)
    assert said.exit_code == 2
    assert said.output == ""
