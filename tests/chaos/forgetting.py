"""Batches whose facts only ever complete phases, and what an answer about them must and may say."""

from dataclasses import dataclass, field
from random import Random

from bcs.domain.facts import Outcome, PhaseReported
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import summarize
from bcs.domain.resolution import resolve
from bcs.domain.state import BatchState, delta_of
from tests.chaos.history import Told, told
from tests.support.events import phase_outcome, registered, spellchecked
from tests.support.laws import LAW

PIPELINE = "comprehensive"
REPORTED = "cj_assessment"
_ESSAYS = ["one", "two"]
_AT_A_TIME = 5

Position = tuple[str, int, int]


def pruned(definitions: PipelineDefinitions, state: BatchState) -> frozenset[str]:
    """What the model prunes."""
    return frozenset(resolve(definitions, PIPELINE, summarize(state, LAW, 0)).pruned)


@dataclass
class Bounds:
    """What is known of the batches from outside: at least what is durable, at most what was sent.

    :param shown: what an answer has shown can't be taken back.
    """

    definitions: PipelineDefinitions
    durable: dict[str, BatchState] = field(default_factory=dict)
    sent: dict[str, BatchState] = field(default_factory=dict)
    shown: dict[str, frozenset[str]] = field(default_factory=dict)
    under_way: dict[Position, Told] = field(default_factory=dict)

    def sending(self, one: Told) -> None:
        """From now on it may show."""
        self.sent.setdefault(one.batch, BatchState()).merge(one.delta)

    def lies(self, one: Told, position: Position) -> None:
        """Once the offset behind it is committed, it must show."""
        self.under_way[position] = one

    def committed(self, topic: str, partition: int, offset: int) -> None:
        """All before this offset is durable."""
        done = [at for at in self.under_way if at[:2] == (topic, partition) and at[2] < offset]
        for position in done:
            one = self.under_way.pop(position)
            self.durable.setdefault(one.batch, BatchState()).merge(one.delta)

    def reporting(self, batch: str, at_us: int) -> BatchState:
        """From now on a report may show; what it comes to."""
        delta = delta_of([PhaseReported(REPORTED, Outcome.COMPLETED, at_us)])
        self.sent.setdefault(batch, BatchState()).merge(delta)
        return delta

    def reported(self, batch: str, delta: BatchState) -> None:
        """It was answered."""
        self.durable.setdefault(batch, BatchState()).merge(delta)

    def at_least(self, batch: str) -> frozenset[str]:
        """What an answer must prune that is asked for now."""
        known = pruned(self.definitions, self.durable.get(batch, BatchState()))
        return known | self.shown.get(batch, frozenset())

    def at_most(self, batch: str) -> frozenset[str]:
        """What an answer may prune that came now."""
        return pruned(self.definitions, self.sent.get(batch, BatchState()))

    def show(self, batch: str, phases: frozenset[str]) -> None:
        """An answer said so."""
        self.shown[batch] = self.shown.get(batch, frozenset()) | phases


def roster(batches: list[str]) -> list[Told]:
    """Their registrations, which must be known before anything else: until then, what is seen is all there is."""
    return [told(registered(batch, _ESSAYS)) for batch in batches]


def completions(batches: list[str], chance: Random) -> list[Told]:
    """What completes them: a few batches at a time, so that writers and readers of one meet; of these, in no order."""
    said = []
    for start in range(0, len(batches), _AT_A_TIME):
        events = []
        for batch in batches[start : start + _AT_A_TIME]:
            events += [spellchecked(batch, essay) for essay in _ESSAYS]
            events += [phase_outcome(batch, phase, _ESSAYS) for phase in ("nlp", "ai_feedback")]
        chance.shuffle(events)
        said += [told(event) for event in events]
    return said
