"""Events drawn from a seed, and the model that sees the same events."""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

from bcs.domain.pipelines import PLATFORM_PHASES, PipelineDefinitions
from bcs.domain.progress import summarize
from bcs.domain.resolution import resolve
from bcs.domain.state import BatchState, delta_of
from bcs.wire.decoding import EventDecoder
from tests.support.events import Event, cj_completed, now, phase_outcome, registered, spellchecked
from tests.support.laws import LAW

ESSAYS = 20
EVENTS_OF_A_BATCH = 100
_LATER_SECONDS = 60.0  # behind every event of the first time, and within the skew that clocks may have
_START = datetime(2026, 1, 1, tzinfo=UTC)
_DECODER = EventDecoder(PLATFORM_PHASES)


@dataclass(frozen=True)
class Told:
    """One event, and what it has to change."""

    event: Event
    batch: str
    delta: BatchState


class History:
    """Events about some batches, in no order, a few of them twice."""

    def __init__(self, seed: int, events: int, name: str) -> None:
        chance = Random(seed)
        self.batches = [f"{name}-{number}" for number in range(max(1, events // EVENTS_OF_A_BATCH))]
        said = [registered(batch, _essays(ESSAYS)) for batch in self.batches][:events]
        while len(said) < events:
            repeated = chance.random() < 0.02
            said.append(_copy(chance.choice(said)) if repeated else _event(chance, chance.choice(self.batches)))
        chance.shuffle(said)
        self.told = [told(event) for event in said]

    def model(self) -> dict[str, BatchState]:
        """What everything that was told comes to, by the pure core alone."""
        states = {batch: BatchState() for batch in self.batches}
        for one in self.told:
            states[one.batch].merge(one.delta)
        return states


def told(event: Event) -> Told:
    """An event with what it has to change."""
    decoded = _DECODER.decode(event.topic, event.value, 0)
    return Told(event, decoded.batch_id, delta_of(decoded.facts))


def still_to_run(definitions: PipelineDefinitions, pipeline: str, state: BatchState) -> list[str]:
    """What the model answers."""
    return list(resolve(definitions, pipeline, summarize(state, LAW, 0)).to_run)


def _essays(count: int) -> list[str]:
    return [f"essay-{number}" for number in range(count)]


def _copy(event: Event) -> Event:
    """As the producers' relay publishes it once more: in a fresh envelope."""
    envelope = json.loads(event.value)
    fresh = {"event_id": str(uuid.uuid4()), "event_timestamp": now(_LATER_SECONDS)}
    return Event(event.topic, event.key, json.dumps({**envelope, **fresh}).encode())


def _event(chance: Random, batch: str) -> Event:
    kind = chance.random()
    if kind < 0.85:
        # Of two events about an essay the newer one counts, and they come in any order.
        at = _START + timedelta(microseconds=chance.randrange(10**9))
        status = "completed" if chance.random() < 0.9 else "failed"
        return spellchecked(batch, chance.choice(_essays(ESSAYS)), status, at.isoformat())
    some = chance.sample(_essays(ESSAYS), chance.randrange(1, ESSAYS))
    failed = chance.sample(some, chance.randrange(len(some)))
    if kind < 0.93:
        return cj_completed(batch, [essay for essay in some if essay not in failed], failed)
    if chance.random() < 0.2:  # ELS names nobody
        some, failed = [], []
    return phase_outcome(batch, chance.choice(["nlp", "ai_feedback"]), some, failed)
