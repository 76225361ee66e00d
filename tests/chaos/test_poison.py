"""A few malformed messages among many events, and one that kills its handler: only those become dead letters."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

import pytest
from aiokafka.structs import RecordMetadata

from bcs.domain.progress import summarize
from bcs.observability.failpoints import FailPoint
from bcs.wire import topics
from tests.chaos.figures import Note
from tests.chaos.history import History
from tests.chaos.poison_letters import SPOILT, Letter, read_letter
from tests.chaos.sizes import SIZES
from tests.support.events import Event, spellchecked
from tests.support.kafka import Platform, platform_broker
from tests.support.laws import LAW
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DELIVERIES = 3
DEADLY = "deadly"  # the batch whose only event its handler does not survive
Message = tuple[str, bytes | None, bytes | None]  # topic, key, value


@dataclass(frozen=True)
class Poison:
    """A message that has to become a dead letter, and what that has to say."""

    kind: str
    event: Event
    value: bytes | None
    reason: str
    attempts: int
    error_type: str

    def letter(self, where: RecordMetadata) -> Letter:
        """The letter about the message at this place."""
        position = (where.topic, where.partition, where.offset)
        return Letter(position, self.event.key, self.value, self.reason, self.attempts, self.error_type)


class Crashes:
    """Makes the handler of one batch crash, every time."""

    def __init__(self) -> None:
        self.count = 0

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `FailPointHook`."""
        if point is FailPoint.BATCH_RECEIVED and subject == DEADLY:
            self.count += 1
            raise RuntimeError("over this one it always crashes")


@pytest.fixture
def kafka_bootstrap_servers(tmp_path: Path) -> Iterator[str]:
    with platform_broker(tmp_path / "kafka") as address:
        yield address


def poisons(chance: Random, events: list[Event]) -> list[Poison]:
    """One event in a thousand, malformed, each in another way as far as there are ways; and a deadly one.

    They are made of events of the last fifth, so that something of the same key comes behind them on their partition.
    """
    kinds = chance.sample(sorted(SPOILT), len(SPOILT))
    last = events[-len(events) // 5 :]

    def spoilt(kind: str, event: Event) -> Poison:
        reason, spoil = SPOILT[kind]
        return Poison(kind, event, spoil(event, chance), reason, 1, "UndecodableMessage")

    malformed = [spoilt(kinds[number % len(kinds)], chance.choice(last)) for number in range(len(events) // 1_000)]
    essay = chance.choice([event.key.decode() for event in last if event.topic == topics.SPELLCHECK_COMPLETED])
    deadly = spellchecked(DEADLY, essay)
    return [*malformed, Poison("deadly", deadly, deadly.value, "processing_failed", DELIVERIES, "RuntimeError")]


def mixed(chance: Random, events: list[Event], poisonous: list[Poison]) -> tuple[list[Message], dict[int, Poison]]:
    """Everything in the order in which it is sent, and the places of what is poisonous: before the last fifth."""
    messages: list[Message] = [(event.topic, event.key, event.value) for event in events]
    places = sorted(chance.sample(range(len(events) * 4 // 5), len(poisonous)))
    for place, poison in zip(places, poisonous, strict=True):
        messages.insert(place, (poison.event.topic, poison.event.key, poison.value))
    return messages, dict(zip(places, poisonous, strict=True))


async def letters(platform: Platform) -> list[Letter]:
    records = [record for topic in topics.CONSUMED for record in await platform.messages(f"{topic}.DLQ")]
    return [read_letter(record) for record in records]


async def outbox_is_empty(service: RunningService) -> bool:
    return await asyncio.to_thread(service.run, service.service.outbox.backlog) == 0


async def counted(orchestrator: Orchestrator, name: str, label: str) -> Counter[str]:
    """A metric's values by one of its labels; nothing for those that are zero."""
    values: Counter[str] = Counter()
    for sample_name, labels, value in await orchestrator.samples():
        if sample_name == name and value:
            values[labels[label]] += int(value)
    return values


@pytest.mark.parametrize("seed", [15])
async def test_poison_becomes_dead_letters_and_its_neighbours_are_applied(
    redis_url: str, kafka_bootstrap_servers: str, note_figure: Note, seed: int
) -> None:
    chance, crashes, history = Random(seed), Crashes(), History(seed, SIZES.poisoned_among, "batch")
    events = [told.event for told in history.told]
    messages, poisonous = mixed(chance, events, poisons(chance, events))
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            crashes.reach,
            redis_url=redis_url,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            message_max_deliveries=DELIVERIES,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        began = monotonic()
        sent = await platform.send_raw(*messages)
        expected = {poison.letter(sent[place]) for place, poison in poisonous.items()}
        for place in poisonous:
            assert is_behind(sent, place)
        await wait_until(lambda: platform.caught_up(service.group), 60, description="offsets are committed to the end")
        seconds = monotonic() - began
        await wait_until(lambda: outbox_is_empty(service), description="all letters are posted")

        got = await letters(platform)
        assert len(got) == len(poisonous), "each exactly once"
        assert set(got) == expected
        for batch, model in history.model().items():
            assert await asyncio.to_thread(service.run, service.service.store.state, batch) == model
            summary = await asyncio.to_thread(service.run, service.service.store.summary, batch)
            assert summary == summarize(model, LAW, summary.version)
        assert (await asyncio.to_thread(service.run, service.service.store.state, DEADLY)).empty
        outcomes = await counted(orchestrator, "bcs_events_processed_total", "outcome")
        assert outcomes.pop("dead_lettered") == len(poisonous)
        assert outcomes.total() == len(events), "each is told to be done once"
        assert crashes.count == DELIVERIES
        # One for each crash; none of what can't be decoded costs any.
        assert await counted(orchestrator, "bcs_actor_restarts_total", "actor") == {"batches/*": DELIVERIES}
    malformed = sorted(poison.kind for poison in poisonous.values() if poison.event.value != poison.value)
    note_figure(
        15,
        f"{len(events)} events, {len(malformed)} malformed ({', '.join(malformed)}), 1 deadly: {len(got)} letters, "
        f"byte-identical; {DELIVERIES} restarts; all others applied; {seconds:.1f} s",
    )


def is_behind(sent: list[RecordMetadata], place: int) -> bool:
    """Whether anything comes behind the message of this place on its partition."""
    there = sent[place]
    return any(
        (other.topic, other.partition) == (there.topic, there.partition) and other.offset > there.offset
        for other in sent[place + 1 :]
    )
