"""The service on Apache Kafka itself: idempotence, a durable log, rebalances, fencing, the limits of the broker."""

import asyncio
import base64
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import RecordMetadata

from bcs.contracts import topics
from bcs.embedded import EmbeddedServer, create_topics
from tests.support import apache_kafka as apache
from tests.support.events import cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import PARTITIONS, Platform, create_platform_topics, values
from tests.support.service import BcsProcess, Orchestrator, RunningService, running_service, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BROKER_LIMIT_BYTES = 100_000
LATE_TOPIC = topics.dead_letter_topic(topics.CJ_COMPLETED)
IN_TIME_SECONDS = 30
LETTER_SECONDS = 15
ASKERS = 3


@pytest.fixture(scope="module")
def kafka(apache_kafka: EmbeddedServer) -> str:
    """The broker that these tests share, with the platform's topics."""
    anyio.run(create_platform_topics, apache_kafka.address)
    return apache_kafka.address


@pytest.fixture(scope="module")
def strict_kafka(apache_kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker that takes smaller messages than the service is told, and lacks a topic."""
    directory = tmp_path_factory.mktemp("strict-kafka")
    with apache.apache_kafka(apache_kafka_jars, directory, message_max_bytes=BROKER_LIMIT_BYTES) as server:
        there = {*topics.CONSUMED, *topics.PUBLISHED} - {LATE_TOPIC}
        anyio.run(create_topics, server.address, sorted(there), PARTITIONS)
        yield server.address


@pytest.fixture
def batch(unique_name: Callable[[str], str]) -> str:
    return unique_name("batch")


@asynccontextmanager
async def service_on(kafka: str, redis_url: str, **overrides: object) -> AsyncIterator[RunningService]:
    """A service that produces idempotently, as it does unless told otherwise."""
    settings = {"kafka_enable_idempotence": True, "redis_url": redis_url, "kafka_bootstrap_servers": kafka}
    async with running_service(**{**settings, **overrides}) as service:
        yield service


def replica(directory: Path, kafka: str, redis_url: str, name: str, of: dict[str, str], **more: object) -> BcsProcess:
    """A process beside others, with which it shares ``of``."""
    environment = {**of, "BCS_KAFKA_ENABLE_IDEMPOTENCE": "true", "BCS_INSTANCE_NAME": name, **more}
    return serve(directory / name, redis_url, kafka, **environment)


def shared_names(unique: str) -> dict[str, str]:
    return {"BCS_REDIS_KEY_PREFIX": f"{unique}:", "BCS_KAFKA_CONSUMER_GROUP_ID": unique}


def as_overrides(environment: dict[str, str]) -> dict[str, object]:
    return {name.removeprefix("BCS_").lower(): value for name, value in environment.items()}


class Group:
    """A consumer group as Apache Kafka sees it."""

    def __init__(self, kafka: str, name: str) -> None:
        self.name, self.history = name, dict[TopicPartition, list[int]]()
        self._admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        self._watcher = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=name, enable_auto_commit=False)
        self._partitions = [TopicPartition(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)]

    async def __aenter__(self) -> "Group":
        await self._admin.start()
        await self._watcher.start()
        self._watcher.assign(self._partitions)  # by hand: no member, and disturbs nobody
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watcher.stop()
        await self._admin.close()

    async def is_stable_with(self, members: int) -> bool:
        """Whether it has so many members, and each knows its partitions."""
        [response] = await self._admin.describe_consumer_groups([self.name])
        [(_, _, state, _, _, present, *_)] = response.groups
        return bool(state == ("Stable" if members else "Empty") and len(present) == members)

    async def stable_with(self, members: int) -> None:
        await wait_until(partial(self.is_stable_with, members), IN_TIME_SECONDS)

    async def committed(self) -> dict[TopicPartition, int]:
        """What is committed; each look is kept in ``history``."""
        found = {}
        for partition in self._partitions:
            offset = await self._watcher.committed(partition)
            found[partition] = offset or 0
            self.history.setdefault(partition, []).append(offset or 0)
        return found

    async def at_the_end(self) -> bool:
        """Whether everything that is on the topics now is committed."""
        ends = await self._watcher.end_offsets(self._partitions)
        committed: dict[TopicPartition, int] = await self.committed()
        return bool(committed == ends)

    async def caught_up(self) -> None:
        await wait_until(self.at_the_end, IN_TIME_SECONDS, description="all that was sent is committed")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look all the time; at the end, no offset ever went backwards."""

        async def look() -> None:
            while True:
                await self.committed()

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])
        steps = {partition: list(pairwise(offsets)) for partition, offsets in self.history.items()}
        backwards = {partition: [step for step in steps[partition] if step[0] > step[1]] for partition in steps}
        assert {partition: down for partition, down in backwards.items() if down} == {}


class Traffic:
    """Events and requests without end, until it is enough."""

    def __init__(self, platform: Platform, bos: Orchestrator, name: str) -> None:
        self.batches = [f"{name}-{number}" for number in range(5)]
        self.done = f"{name}-done"
        self.essays = 0  # sent for each batch
        self.pruned: set[str] = set()
        self.recorded: list[str] = []
        self.statuses: Counter[int] = Counter()
        self._platform, self._bos, self._enough = platform, bos, False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """While in here, it flows; at the end, all of it has been applied, unless something was lost."""
        await self._bos.complete(self.done, "spellcheck")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            for worker in range(ASKERS):
                group.create_task(self._ask(worker))
            yield
            self._enough = True
        essays = [f"essay-{number}" for number in range(self.essays)]
        # Registered only now, each batch is complete only if none of its essays' events was lost.
        await self._platform.send(*(registered(batch, essays) for batch in self.batches))

    async def more(self, events: int = 5, requests: int = 20) -> None:
        """Wait until it has gone on for a while."""
        enough = self.essays + events, len(self.pruned) + requests
        await wait_until(lambda: (self.essays >= enough[0]) and len(self.pruned) >= enough[1], IN_TIME_SECONDS)

    async def assert_nothing_lost(self) -> None:
        for batch in (*self.batches, *self.recorded):
            assert await self._bos.to_run(batch) == ["ai_feedback"], f"nothing about {batch} is lost"
        await wait_until(self._all_announced, IN_TIME_SECONDS)
        ids: dict[str, set[str]] = {}
        for record in values(await self._platform.messages(topics.PHASE_SKIPPED, self.done)):
            ids.setdefault(record["data"]["correlation_id"], set()).add(record["event_id"])
        assert all(len(copies) == 1 for copies in ids.values()), "every copy carries the same event id"

    async def _all_announced(self) -> bool:
        records = values(await self._platform.messages(topics.PHASE_SKIPPED, self.done))
        return self.pruned <= {record["data"]["correlation_id"] for record in records}

    async def _publish(self) -> None:
        while not self._enough:
            essay = f"essay-{self.essays}"
            await self._platform.send(*(spellchecked(batch, essay) for batch in self.batches))
            self.essays += 1

    async def _ask(self, worker: int) -> None:
        asked = 0
        while not self._enough:
            correlation_id, reported = f"{self.done}-{worker}-{asked}", f"{self.done}-reported-{worker}-{asked}"
            asked += 1
            answer = await self._bos.define(self.done, correlation_id=correlation_id)
            self.statuses[answer.status] += 1
            if answer.status == 200:
                assert answer.json["pruned_phases"] == ["spellcheck"]
                self.pruned.add(correlation_id)
            answer = await self._bos.complete(reported, "spellcheck")
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.recorded.append(reported)


async def letters_about(platform: Platform, source: RecordMetadata) -> list[dict[str, Any]]:
    """The dead letters whose source position is this one."""
    letters: list[ConsumerRecord] = await platform.messages(topics.dead_letter_topic(source.topic))
    return [
        letter
        for letter in values(letters)
        if letter["additional_metadata"]["source_partition"] == source.partition
        and letter["additional_metadata"]["source_offset"] == source.offset
    ]


async def letter_about(platform: Platform, source: RecordMetadata) -> dict[str, Any]:
    letters: list[dict[str, Any]] = await wait_until(
        lambda: letters_about(platform, source), LETTER_SECONDS, description=f"the letter about {source} arrives"
    )
    return letters[0]


def original(letter: dict[str, Any]) -> bytes:
    return base64.b64decode(letter["failed_event_envelope"]["raw_base64"])


async def has_status(bos: Orchestrator, dependency: str, status: str) -> bool:
    answer = await bos.get("/healthz")
    assert answer.status == 200
    return bool(answer.json["dependencies"][dependency]["status"] == status)


async def assert_nothing_crashed(service: RunningService, bos: Orchestrator) -> None:
    assert [name for name, _, value in await bos.samples() if name == "bcs_actor_restarts_total" and value] == []
    assert all(child.restarts == 0 for child in service.snapshot().children)


async def assert_outbox_empties(bos: Orchestrator) -> None:
    async def is_empty() -> bool:
        return await bos.metric("bcs_outbox_backlog") == 0

    await wait_until(is_empty, description="nothing is stuck in the outbox")


# --- the whole path --------------------------------------------------------------------------------------------------


async def test_the_whole_path_works_with_idempotent_producing(kafka: str, redis_url: str, batch: str) -> None:
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as bos,
    ):
        await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"))
        await group.caught_up()
        assert await bos.to_run(batch) == ["spellcheck", "ai_feedback"]
        junk = await platform.send_raw(*((topic, b"key", b"junk about " + batch.encode()) for topic in topics.CONSUMED))
        await platform.send(
            spellchecked(batch, "b"),
            cj_completed(batch, ["a", "b"]),
            phase_outcome(batch, "nlp", ["a", "b"]),
        )
        await group.caught_up()
        answer = await bos.define(batch, correlation_id=f"{batch}-request")
        assert answer.json["final_pipeline"] == ["ai_feedback"]
        assert answer.json["pruned_phases"] == ["spellcheck"]
        [skipped] = await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        data = json.loads(skipped.value)["data"]
        assert (data["phase_name"], data["correlation_id"]) == ("spellcheck", f"{batch}-request")
        for source in junk:
            assert original(await letter_about(platform, source)) == b"junk about " + batch.encode()
        await assert_outbox_empties(bos)
        await assert_nothing_crashed(service, bos)


# --- the broker dies -------------------------------------------------------------------------------------------------


async def test_a_broker_killed_and_restarted_under_traffic_costs_nothing(
    private_apache_kafka: EmbeddedServer, redis_url: str, batch: str
) -> None:
    kafka = private_apache_kafka.address
    await create_platform_topics(kafka)
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as bos,
    ):
        traffic = Traffic(platform, bos, batch)
        async with traffic.flowing():
            await traffic.more()
            await platform.send(*(spellchecked(f"{batch}-last", f"essay-{number}") for number in range(100)))
            private_apache_kafka.kill()
            await wait_until(lambda: has_status(bos, "kafka", "unhealthy"))
            await traffic.more(events=0)  # HTTP goes on, and what it announces has to wait
            await anyio.to_thread.run_sync(private_apache_kafka.restart)
            await traffic.more()
        await platform.send(registered(f"{batch}-last", [f"essay-{number}" for number in range(100)]))
        await group.caught_up()
        await traffic.assert_nothing_lost()
        assert await bos.to_run(f"{batch}-last") == ["ai_feedback"], "what was on the log when it died still is"
        assert set(traffic.statuses) == {200}
        await wait_until(lambda: has_status(bos, "kafka", "healthy"))
        await assert_outbox_empties(bos)
        await assert_nothing_crashed(service, bos)


# --- rebalances ------------------------------------------------------------------------------------------------------


async def test_replicas_that_join_leave_and_die_lose_nothing(
    kafka: str, redis_url: str, batch: str, tmp_path: Path
) -> None:
    names = shared_names(batch)
    async with (
        service_on(kafka, redis_url, instance_name="first", **as_overrides(names)) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as bos,
    ):
        traffic = Traffic(platform, bos, batch)
        async with group.watched(), traffic.flowing():
            await group.stable_with(1)
            with replica(tmp_path, kafka, redis_url, "leaves", names) as leaves:
                await group.stable_with(2)
                await traffic.more()
                leaves.signal(signal.SIGTERM)
                assert await leaves.ended() == 0
            await group.stable_with(1)
            await traffic.more()
            with replica(tmp_path, kafka, redis_url, "dies", names):
                await group.stable_with(2)
                await traffic.more()
            await group.stable_with(1)
            await traffic.more()
        await group.caught_up()
        await traffic.assert_nothing_lost()
        assert set(traffic.statuses) == {200}
        await assert_nothing_crashed(service, bos)


# --- limits of the broker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["nothing else is published", "announcements flow"])
async def test_a_letter_that_only_the_broker_finds_too_large_arrives_reduced(
    strict_kafka: str, redis_url: str, batch: str, meanwhile: str
) -> None:
    topic, large = topics.SPELLCHECK_COMPLETED, b"\xff" * (BROKER_LIMIT_BYTES - 2_000)  # in base64 a third more
    small = [f"small {number} of {batch}".encode() for number in range(20)]
    async with (
        service_on(strict_kafka, redis_url) as service,
        Platform(strict_kafka) as platform,
        Group(strict_kafka, service.group) as group,
        Orchestrator(service.base) as bos,
    ):
        assert service.service.settings.kafka_max_message_bytes > BROKER_LIMIT_BYTES
        async with AsyncExitStack() as stack:
            if meanwhile == "announcements flow":
                traffic = Traffic(platform, bos, batch)
                await stack.enter_async_context(traffic.flowing())
                await traffic.more()
            before = await platform.send_raw(*((topic, b"key", value) for value in small))
            [too_large] = await platform.send_raw((topic, b"key", large))
            behind = await platform.send_raw(*((topic, b"key", value) for value in small))
            for source, value in zip((*before, *behind), (*small, *small), strict=True):
                assert original(await letter_about(platform, source)) == value
            letter = await letter_about(platform, too_large)
            assert letter["additional_metadata"]["truncated"] is True
            assert letter["additional_metadata"]["value_bytes"] == len(large)
            assert large.startswith(original(letter))
            # And the producer is as good as new.
            [last] = await platform.send_raw((topic, b"key", b"last of " + batch.encode()))
            assert original(await letter_about(platform, last)) == b"last of " + batch.encode()
        await group.caught_up()
        await assert_outbox_empties(bos)
        assert [value for name, _, value in await bos.samples() if name == "bcs_outbox_parked_total" and value] == []
        await assert_nothing_crashed(service, bos)


async def test_letters_for_a_topic_that_does_not_exist_wait_for_it_and_hold_up_no_others(
    strict_kafka: str, redis_url: str, batch: str
) -> None:
    async with (
        service_on(strict_kafka, redis_url, kafka_request_timeout_seconds=1.5) as service,
        Platform(strict_kafka) as platform,
        Group(strict_kafka, service.group) as group,
        Orchestrator(service.base) as bos,
    ):
        waiting = await platform.send_raw(*((topics.CJ_COMPLETED, None, b"waits %d" % n) for n in range(10)))
        await group.caught_up()
        others = await platform.send_raw(*((topics.PHASE_OUTCOME, None, b"goes on %d" % n) for n in range(10)))
        for number, source in enumerate(others):
            assert original(await letter_about(platform, source)) == b"goes on %d" % number
        assert (await bos.complete(batch, "spellcheck")).status == 200
        assert await bos.to_run(batch) == ["ai_feedback"]
        await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch), IN_TIME_SECONDS)
        assert (await bos.metric("bcs_outbox_backlog") or 0) >= len(waiting), "they wait"
        await create_topics(strict_kafka, [LATE_TOPIC], PARTITIONS)
        for number, source in enumerate(waiting):
            assert original(await letter_about(platform, source)) == b"waits %d" % number
        await assert_outbox_empties(bos)
        await assert_nothing_crashed(service, bos)


# --- fencing ---------------------------------------------------------------------------------------------------------

# Seconds between a zombie's commits: one is due when it wakes up, or only when it joins again and gives up what it had.
COMMITS = {"at once": 2.0, "joining": 3600.0}


@asynccontextmanager
async def frozen_before_its_commit(
    zombie: BcsProcess, platform: Platform, group: Group, batch: str
) -> AsyncIterator[list[str]]:
    """A process that is stopped with something to commit, until the end of the block; gives the essays it has taken."""
    essays: list[str] = []
    async with Orchestrator(zombie.base) as bos:
        while True:
            essays.append(f"essay-{len(essays)}")
            # The second event counts only behind the first: once it is answered for, both have been applied.
            await platform.send(spellchecked(batch, essays[-1]), registered(f"{batch}-{essays[-1]}", ["a"]))
            await platform.send(spellchecked(f"{batch}-{essays[-1]}", "a"))
            await wait_until(partial(is_applied, bos, f"{batch}-{essays[-1]}"), IN_TIME_SECONDS)
            zombie.signal(signal.SIGSTOP)
            if not await group.at_the_end():
                break
            zombie.signal(signal.SIGCONT)
    try:
        yield essays
    finally:
        zombie.signal(signal.SIGCONT)


async def is_applied(bos: Orchestrator, batch: str) -> bool:
    return await bos.to_run(batch) == ["ai_feedback"]


@pytest.mark.parametrize(("which", "heir_leaves"), [("at once", False), ("joining", False), ("at once", True)])
async def test_the_late_commit_of_a_zombie_is_refused(
    kafka: str, redis_url: str, batch: str, tmp_path: Path, which: str, heir_leaves: bool
) -> None:
    names = shared_names(batch)
    interval = {"BCS_INTAKE_COMMIT_INTERVAL_SECONDS": COMMITS[which]}
    async with (
        Platform(kafka) as platform,
        Group(kafka, batch) as group,
        group.watched(),
        AsyncExitStack() as services,
    ):
        zombie = services.enter_context(replica(tmp_path, kafka, redis_url, "zombie", names, **interval))
        await zombie.answers()
        await group.stable_with(1)
        async with frozen_before_its_commit(zombie, platform, group, batch) as essays:
            heirs = await services.enter_async_context(AsyncExitStack())
            await heirs.enter_async_context(service_on(kafka, redis_url, instance_name="heir", **as_overrides(names)))
            await group.caught_up()
            essays += [f"more-{number}" for number in range(50)]
            await platform.send(*(spellchecked(batch, essay) for essay in essays[-50:]))
            await group.caught_up()
            if heir_leaves:
                await heirs.aclose()
                await group.stable_with(0)
        if not heir_leaves:
            await wait_until(lambda: "offset_commit_failed" in zombie.log.read_text(), IN_TIME_SECONDS)
        await group.stable_with(1 if heir_leaves else 2)
        # Back in the group, it is worth as much as any other.
        essays.append("last")
        await platform.send(registered(batch, essays), spellchecked(batch, "last"))
        async with Orchestrator(zombie.base) as bos:
            await wait_until(lambda: is_applied(bos, batch), IN_TIME_SECONDS, description="nothing is lost")
        zombie.signal(signal.SIGTERM)
        assert await zombie.ended() == 0
        await heirs.aclose()
        # Whoever was last has committed all of it.
        await group.caught_up()
