"""The actor of a batch under its supervisor: applied facts, replies, and dead letters."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import anyio
import pytest

from bcs.actors.batches import GROUP_COMMIT_FACTS, BatchActor
from bcs.actors.commit_slots import CommitSlots
from bcs.actors.dead_letters import DeadLetters
from bcs.actors.messages import ApplyFacts, BatchCommand, DeliveryToken, HttpSource
from bcs.actors.waking_outbox import WakingOutbox
from bcs.domain.facts import EssayPhaseEnded, Outcome, PhaseReported
from bcs.domain.history import FactsRecorded, HistoryEntry
from bcs.domain.state import BatchState
from bcs.errors import StoreCorrupted, StoreRefused, StoreUnavailable
from bcs.storage.memory import MemoryOutbox, MemoryStateStore
from bcs.storage.ports import Committed
from bcs.supervision import ActorContext, AskTimeout, DynamicSupervisor, RestartIntensity, RestartIntensityExceeded
from bcs.supervision.keyed import KeyedChild
from bcs.wire import topics
from bcs.wire.published import ConsumedMessage, OutboundMessage
from tests.supervision.harness import AT_ONCE, OFTEN, Recorder, running
from tests.support.events import spellchecked
from tests.support.laws import LAW
from tests.support.runtimes import runtime_with
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BATCH, POISON = "batch", "essay-5"
ESSAYS = [f"essay-{number}" for number in range(10)]
DELIVERIES = 3


class PoisonableStore(MemoryStateStore):
    """Has a fault that shows with one essay."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        if POISON in delta.first_seen_us:
            raise RuntimeError("a fault")
        return await super().commit(batch_id, delta)


class Kept:
    """An archive that remembers its entries."""

    def __init__(self) -> None:
        self.entries: list[HistoryEntry] = []

    async def write_durably(self, entries: Sequence[HistoryEntry]) -> None:
        self.entries.extend(entries)


class SlowStore(MemoryStateStore):
    """Commits when the test lets it."""

    def __init__(self) -> None:
        super().__init__(law=LAW, ttl_seconds=3600, clock=time.monotonic)
        self.committing, self.go_on = anyio.Event(), anyio.Event()

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        self.committing.set()
        await self.go_on.wait()
        return await super().commit(batch_id, delta)


def command(offset: int, essay: str) -> ApplyFacts:
    message = ConsumedMessage(
        topics.SPELLCHECK_COMPLETED,
        0,
        offset,
        timestamp_ms=1,
        key=essay.encode(),
        value=spellchecked(BATCH, essay).value,
    )
    fact = EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, 1)
    token = DeliveryToken(message, "SpellcheckPhaseCompletedV1", "correlation", 1)
    return ApplyFacts(BATCH, (fact,), token)


def supervisor_of(
    store: MemoryStateStore,
    outbox: MemoryOutbox,
    finished: list[DeliveryToken],
    nudges: list[None],
    *,
    archive_client: Any = None,
    observer: Recorder | None = None,
    intensity: RestartIntensity = OFTEN,
    max_running: float = inf,
) -> DynamicSupervisor[BatchCommand]:
    runtime = runtime_with(retry_maximum_seconds=0.1)
    actor = BatchActor(
        runtime=runtime,
        store=store,
        archive_client=archive_client,
        dead_letters=DeadLetters(
            outbox=WakingOutbox(outbox, lambda: nudges.append(None)), runtime=runtime, is_erased=store.is_erased
        ),
        finished=lambda message: finished.extend(message.tokens),
        process_stops=lambda: False,
        definitions=dict,
        commit_slots=CommitSlots(1, store.server_of),
    )
    return DynamicSupervisor(
        "batches",
        actor.run,
        mailbox_capacity=100,
        max_children=10,
        max_running=max_running,
        max_deliveries=DELIVERIES,
        intensity=intensity,
        backoff=AT_ONCE,
        observer=observer,
    )


async def test_a_poison_message_becomes_a_dead_letter_and_others_are_applied() -> None:
    store, outbox = PoisonableStore(law=LAW, ttl_seconds=3600, clock=time.monotonic), MemoryOutbox(100, time.monotonic)
    finished: list[DeliveryToken] = []
    nudges: list[None] = []
    supervisor = supervisor_of(store, outbox, finished, nudges)
    commands = [command(offset, essay) for offset, essay in enumerate(ESSAYS)]
    for each in commands:  # before it runs, so that the first delivery has all of them
        supervisor.deliver_nowait(BATCH, each)
    async with running(supervisor) as tree:
        await wait_until(lambda: len(finished) >= len(ESSAYS))
    assert tree.in_time

    told = sorted(token.message.offset for token in finished)
    assert told == list(range(len(ESSAYS))), "each exactly once"
    neighbours = set(ESSAYS) - {POISON}
    state = await store.state(BATCH)
    assert state.first_seen_us.keys() == neighbours
    assert state.essay_marks["spellcheck"].keys() == neighbours

    [entry] = await outbox.lease(10)
    assert entry.message.topic == topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
    token = commands[ESSAYS.index(POISON)].token
    assert token is not None
    assert token.message.value is not None
    assert token.message.value in entry.message.value, "byte for byte"
    letter = json.loads(entry.message.value)
    assert letter["dlq_reason"] == "processing_failed"
    about = letter["additional_metadata"]
    assert (about["attempts"], about["error_type"]) == (DELIVERIES, "RuntimeError")
    assert about["source_offset"] == token.message.offset
    assert nudges, "the publisher is told"


class CorruptedStore(MemoryStateStore):
    """Is away at first. When it is back, it has something else in the place of the batch."""

    commits = 0

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        self.commits += 1
        if self.commits <= 2:
            raise StoreUnavailable("redis", "the test says so")
        raise StoreCorrupted(batch_id, "the test says so")


async def test_a_final_refusal_after_an_outage_makes_a_dead_letter_and_no_crash() -> None:
    store, outbox = CorruptedStore(law=LAW, ttl_seconds=3600, clock=time.monotonic), MemoryOutbox(100, time.monotonic)
    finished: list[DeliveryToken] = []
    observed = Recorder()
    supervisor = supervisor_of(store, outbox, finished, [], observer=observed)
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    async with running(supervisor):
        await wait_until(lambda: finished)
    assert "restarting" not in {event for event, *_ in observed.events}
    [entry] = await outbox.lease(10)
    assert json.loads(entry.message.value)["additional_metadata"]["error_type"] == "StoreCorrupted"


async def test_a_message_counts_as_finished_only_after_its_commit() -> None:
    store, finished = SlowStore(), list[DeliveryToken]()
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [])
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    async with running(supervisor):
        with anyio.fail_after(20):
            await store.committing.wait()
        assert finished == []
        store.go_on.set()
        await wait_until(lambda: [token.message.offset for token in finished] == [7])
    assert (await store.state(BATCH)).first_seen_us.keys() == {"essay"}


async def test_a_repeated_archive_write_keeps_the_time_of_the_first() -> None:
    """The archive queue recognizes the entry by its id."""
    entries: list[HistoryEntry] = []

    class ArchiveClient:
        """Loses the first reply."""

        async def write_durably(self, kept: Sequence[HistoryEntry]) -> None:
            entries.extend(kept)
            if len(entries) == 1:
                raise StoreUnavailable("archive", "the test says so")

    store, finished = MemoryStateStore(law=LAW, ttl_seconds=3600, clock=time.monotonic), list[DeliveryToken]()
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [], archive_client=ArchiveClient())
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    async with running(supervisor):
        await wait_until(lambda: finished)
    first, again = entries
    assert first == again


async def test_a_report_whose_caller_is_gone_is_not_stored() -> None:
    store, finished = MemoryStateStore(law=LAW, ttl_seconds=3600, clock=time.monotonic), list[DeliveryToken]()
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [])
    fact = PhaseReported("nlp", Outcome.COMPLETED, 1)
    report = HttpSource(uuid.uuid4(), "correlation", "the test")
    with pytest.raises(AskTimeout):  # it does not run yet, and its caller is told that nothing was recorded
        await supervisor.ask(BATCH, lambda reply: ApplyFacts(BATCH, (fact,), source=report, reply=reply), 0)
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    async with running(supervisor):
        await wait_until(lambda: finished)
    state = await store.state(BATCH)
    assert state.first_seen_us.keys() == {"essay"}
    assert state.reports == {}


@pytest.mark.parametrize("archive_client", [None, Kept()], ids=["without a record", "with a record"])
async def test_only_events_that_exceed_the_limit_of_essays_are_refused(archive_client: Kept | None) -> None:
    store = MemoryStateStore(law=LAW, ttl_seconds=3600, clock=time.monotonic, max_essays=2)
    outbox, finished = MemoryOutbox(100, time.monotonic), list[DeliveryToken]()
    supervisor = supervisor_of(store, outbox, finished, [], archive_client=archive_client)
    essays = ["first", "second", "third", "first", "fourth", "second"]
    for offset, essay in enumerate(essays):
        supervisor.deliver_nowait(BATCH, command(offset, essay))
    async with running(supervisor):
        await wait_until(lambda: len(finished) == len(essays))
    assert (await store.state(BATCH)).first_seen_us.keys() == {"first", "second"}
    letters = [json.loads(entry.message.value) for entry in await outbox.lease(10)]
    assert [letter["dlq_reason"] for letter in letters] == ["too_many_essays"] * 2
    assert [letter["additional_metadata"]["source_offset"] for letter in letters] == [2, 4]
    if archive_client:
        positions = [entry.position for entry in archive_client.entries if isinstance(entry, FactsRecorded)]
        assert [position.offset for position in positions if position] == [0, 1, 3, 5], "no fact of a dead letter"


async def test_facts_reach_the_archive_while_redis_can_not_report_its_room() -> None:
    class Away(MemoryStateStore):
        """Answers once the archive has the entries."""

        async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
            raise StoreUnavailable("redis", "the test says so")

        async def commit(self, batch_id: str, delta: BatchState) -> Committed:
            assert archive_client.entries
            return await super().commit(batch_id, delta)

    archive_client, finished = Kept(), list[DeliveryToken]()
    store = Away(law=LAW, ttl_seconds=3600, clock=time.monotonic)
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [], archive_client=archive_client)
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    async with running(supervisor):
        await wait_until(lambda: finished)


async def test_a_transaction_exceeds_its_facts_only_for_a_single_event() -> None:
    class Weighing(MemoryStateStore):
        """Notes how many essays each commit is about."""

        async def commit(self, batch_id: str, delta: BatchState) -> Committed:
            commits.append(len(delta.first_seen_us))
            return await super().commit(batch_id, delta)

    commits: list[int] = []
    finished: list[DeliveryToken] = []
    store = Weighing(law=LAW, ttl_seconds=3600, clock=time.monotonic)
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [])
    half, more = GROUP_COMMIT_FACTS // 2, GROUP_COMMIT_FACTS + 1
    for offset, essays in enumerate([1, half, half, 1, more, 1]):
        facts = tuple(EssayPhaseEnded("nlp", f"{offset}-{number}", Outcome.COMPLETED, 1) for number in range(essays))
        supervisor.deliver_nowait(BATCH, replace(command(offset, "essay"), facts=facts))
    async with running(supervisor):
        await wait_until(lambda: len(finished) == 6)
    assert commits == [half + 1, half + 1, more, 1]


async def test_messages_that_arrive_while_a_batch_waits_for_its_turn_are_committed_together() -> None:
    class Counting(SlowStore):
        """Notes how many essays each commit is about."""

        async def commit(self, batch_id: str, delta: BatchState) -> Committed:
            commits.append((batch_id, len(delta.first_seen_us)))
            return await super().commit(batch_id, delta)

    commits: list[tuple[str, int]] = []
    store, finished = Counting(), list[DeliveryToken]()
    supervisor = supervisor_of(store, MemoryOutbox(100, time.monotonic), finished, [])
    async with running(supervisor):
        supervisor.deliver_nowait("another", replace(command(0, "essay"), batch_id="another"))
        with anyio.fail_after(20):
            await store.committing.wait()  # the only slot is taken
        for offset, essay in enumerate(ESSAYS, start=1):
            supervisor.deliver_nowait(BATCH, command(offset, essay))
            await anyio.wait_all_tasks_blocked()
        store.go_on.set()
        await wait_until(lambda: len(finished) == 1 + len(ESSAYS))
    assert commits == [("another", 1), (BATCH, len(ESSAYS))]


class AwayForOneBatch(PoisonableStore):
    """Is away for one batch, and has a fault that shows in another."""

    def __init__(self) -> None:
        super().__init__(law=LAW, ttl_seconds=3600, clock=time.monotonic)
        self.away, self.tried = True, False

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        if self.away and batch_id == BATCH:
            self.tried = True
            raise StoreUnavailable("memory", "the test says so")
        return await super().commit(batch_id, delta)


async def test_messages_that_wait_for_the_store_outlive_a_supervisor_that_gives_up() -> None:
    store, finished = AwayForOneBatch(), list[DeliveryToken]()
    supervisor = supervisor_of(
        store, MemoryOutbox(100, time.monotonic), finished, [], intensity=RestartIntensity(1, 60.0)
    )
    supervisor.deliver_nowait(BATCH, command(7, "essay"))
    context: ActorContext[Any] = ActorContext("batches")
    async with anyio.create_task_group() as group:

        async def crash_another() -> None:
            await wait_until(lambda: store.tried)
            await supervisor.deliver("another", replace(command(8, POISON), batch_id="another"))

        group.start_soon(crash_another)
        with pytest.raises(RestartIntensityExceeded):
            await supervisor.run(context)
    assert finished == []
    store.away = False
    async with running(supervisor):
        await wait_until(lambda: {token.message.offset for token in finished} == {7, 8})
    assert (await store.state(BATCH)).first_seen_us.keys() == {"essay"}


class RefusingStore(MemoryStateStore):
    """Refuses every commit with one essay in it."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        if POISON in delta.first_seen_us:
            raise StoreRefused("memory", "the test says so")
        return await super().commit(batch_id, delta)


async def test_of_a_group_that_a_store_refuses_only_the_event_at_fault_is_lost() -> None:
    store, outbox = RefusingStore(law=LAW, ttl_seconds=3600, clock=time.monotonic), MemoryOutbox(100, time.monotonic)
    finished = list[DeliveryToken]()
    supervisor = supervisor_of(store, outbox, finished, [])
    for offset, essay in enumerate(ESSAYS):
        supervisor.deliver_nowait(BATCH, command(offset, essay))
    async with running(supervisor):
        await wait_until(lambda: len(finished) == len(ESSAYS))
    assert (await store.state(BATCH)).first_seen_us.keys() == set(ESSAYS) - {POISON}
    [entry] = await outbox.lease(10)
    metadata = json.loads(entry.message.value)["additional_metadata"]
    assert (metadata["source_offset"], metadata["attempts"]) == (ESSAYS.index(POISON), 1), "no crash"


class PartlyCorruptedStore(MemoryStateStore):
    """Has something else in the place of some batches."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        if batch_id.startswith("corrupted"):
            raise StoreCorrupted(batch_id, "the test says so")
        if batch_id.startswith("crashing"):
            raise ValueError("the test says so")
        return await super().commit(batch_id, delta)


def retrying(supervisor: DynamicSupervisor[BatchCommand]) -> list[KeyedChild[BatchCommand]]:
    """The batches whose attempts let others run in their place."""
    children = supervisor._children.by_key.values()
    return [child for child in children if child.attempt and child.attempt.context.waited]


@pytest.mark.parametrize("fault", ["corrupted", "crashing"])
async def test_batches_whose_dead_letters_have_no_room_hold_up_no_other_batch(fault: str) -> None:
    store = PartlyCorruptedStore(law=LAW, ttl_seconds=3600, clock=time.monotonic)
    outbox, finished = MemoryOutbox(1, time.monotonic), list[DeliveryToken]()
    await outbox.append([OutboundMessage("phase_skipped", topics.PHASE_SKIPPED, b"", b"")])
    supervisor = supervisor_of(store, outbox, finished, [], max_running=2)
    async with running(supervisor):
        for offset in range(3):
            name = f"{fault}-{offset}"
            supervisor.deliver_nowait(name, replace(command(offset, "essay"), batch_id=name))
        # All three are given up, and wait for the outbox.
        await wait_until(lambda: len(retrying(supervisor)) == 3)
        supervisor.deliver_nowait(BATCH, command(3, "essay"))
        await wait_until(lambda: [token.message.offset for token in finished] == [3])

        async def all_are_finished() -> bool:
            await outbox.ack(await outbox.lease(10))
            return len(finished) == 4

        await wait_until(all_are_finished)
