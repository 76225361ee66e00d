"""The offset tracker against a naive model: nothing unfinished is ever passed over, and the counts end at zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bcs.actors.ingest.offsets import OffsetTracker
from tests.support.tiers import examples

TOPICS = ("x", "y")
partitions = st.tuples(st.sampled_from(TOPICS), st.integers(0, 1))
choices = st.integers(0, 10**6)
Key = tuple[str, int]


@dataclass
class Ownership:
    """A naive model of one partition between assign and revoke: each message read, and whether it is durable."""

    epoch: int
    offsets: list[int] = field(default_factory=list)
    durable: set[int] = field(default_factory=set)
    committed: int | None = None

    @property
    def unfinished(self) -> list[int]:
        return [offset for offset in self.offsets if offset not in self.durable]

    @property
    def committable(self) -> int | None:
        """Behind the last message before the first unfinished one."""
        unfinished = self.unfinished
        before = [offset for offset in self.offsets if all(offset < other for other in unfinished)]
        return max(before) + 1 if before else None


class Offsets(RuleBasedStateMachine):
    """Reads, finishes, revokes and assigns in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker(count(1))
        self.owned: dict[Key, Ownership] = {}
        self.next_offset: dict[Key, int] = {}
        self.handed_out: list[tuple[Key, int, int]] = []
        self.epochs_seen: set[int] = set()

    @rule(keys=st.sets(partitions, min_size=1))
    def assign(self, keys: set[Key]) -> None:
        self.tracker.assign(sorted(keys))
        for key in keys:
            epoch = self.tracker.epoch(*key)
            assert epoch is not None
            assert epoch not in self.epochs_seen
            self.owned[key] = Ownership(epoch)
        self.epochs_seen |= {self.owned[key].epoch for key in keys}

    @rule(keys=st.sets(partitions, min_size=1))
    def revoke(self, keys: set[Key]) -> None:
        self.tracker.revoke(sorted(keys))
        for key in keys:
            self.owned.pop(key, None)

    @rule()
    def revoke_all(self) -> None:
        self.tracker.revoke(list(self.owned))
        self.owned.clear()

    @precondition(lambda self: self.owned)
    @rule(choice=choices, gap=st.sampled_from([0, 0, 0, 1, 7]), messages=st.integers(1, 4))
    def read(self, choice: int, gap: int, messages: int) -> None:
        key = sorted(self.owned)[choice % len(self.owned)]
        for _ in range(messages):
            offset = self.next_offset.get(key, 0) + gap
            self.next_offset[key] = offset + 1
            self.tracker.read(*key, offset)
            self.owned[key].offsets.append(offset)
            self.handed_out.append((key, offset, self.owned[key].epoch))

    @precondition(lambda self: self.handed_out)
    @rule(choice=choices)
    def finish(self, choice: int) -> None:
        """Of all messages ever read, whether or not they still count, and maybe not for the first time."""
        key, offset, epoch = self.handed_out[choice % len(self.handed_out)]
        self.tracker.finish(*key, offset, epoch)
        if key in self.owned and self.owned[key].epoch == epoch:
            self.owned[key].durable.add(offset)

    @precondition(lambda self: self.owned)
    @rule(choice=choices)
    def finish_what_was_never_read(self, choice: int) -> None:
        key = sorted(self.owned)[choice % len(self.owned)]
        self.tracker.finish(*key, self.next_offset.get(key, 0) + 100, self.owned[key].epoch)

    @precondition(lambda self: self.owned)
    @rule(choice=choices)
    def read_again_from_the_beginning(self, choice: int) -> None:
        """The start of a new owner without a committed offset."""
        key = sorted(self.owned)[choice % len(self.owned)]
        self.assign({key})
        self.next_offset[key] = 0

    @rule()
    def commit(self) -> None:
        offsets = self.tracker.to_commit()
        self.tracker.committed(offsets)
        for key, offset in offsets.items():
            self.owned[key].committed = offset
        assert self.tracker.to_commit() == {}

    @invariant()
    def committable_is_what_the_model_says(self) -> None:
        offsets = self.tracker.to_commit()
        for key, owned in self.owned.items():
            assert offsets.get(key, owned.committed) == owned.committable
        assert offsets.keys() <= self.owned.keys()

    @invariant()
    def nothing_unfinished_is_passed_over(self) -> None:
        for key, offset in self.tracker.to_commit().items():
            assert all(offset <= unfinished for unfinished in self.owned[key].unfinished)

    @invariant()
    def the_counts_are_those_of_what_is_unfinished(self) -> None:
        unfinished = {key: owned.unfinished for key, owned in self.owned.items()}
        assert self.tracker.in_flight == sum(map(len, unfinished.values()))
        for key in [*self.owned, ("x", 99)]:
            assert self.tracker.unfinished([key]) == len(unfinished.get(key, []))
        assert self.tracker.unfinished(self.owned) == self.tracker.in_flight

    @invariant()
    def the_position_is_the_first_that_is_not_durable(self) -> None:
        for key, owned in self.owned.items():
            last = max(owned.offsets, default=None)
            behind = None if last is None else last + 1
            assert self.tracker.position(*key) == min(owned.unfinished, default=behind)
        assert self.tracker.position("x", 99) is None

    def teardown(self) -> None:
        self.tracker.revoke(list(self.owned))
        assert self.tracker.remembered == 0
        assert self.tracker.in_flight == 0
        assert self.tracker.to_commit() == {}


TestOffsetTracker = Offsets.TestCase
TestOffsetTracker.settings = settings(deadline=None, max_examples=examples(35), stateful_step_count=30)


def test_unfinished_messages_of_a_revoked_partition_are_not_counted() -> None:
    tracker = OffsetTracker(count(1))
    tracker.assign([("x", 0)])
    epoch = tracker.epoch("x", 0)
    assert epoch is not None
    for offset in range(3):
        tracker.read("x", 0, offset)
    tracker.finish("x", 0, 1, epoch)
    tracker.revoke([("x", 0)])
    assert tracker.in_flight == 0


def test_finishing_everything_commits_behind_the_last_message() -> None:
    tracker = OffsetTracker(count(1))
    tracker.assign([("x", 0)])
    epoch = tracker.epoch("x", 0)
    assert epoch is not None
    for offset in (5, 6, 9):
        tracker.read("x", 0, offset)
    for offset, committable in ((9, {}), (5, {("x", 0): 6}), (6, {("x", 0): 10})):
        tracker.finish("x", 0, offset, epoch)
        assert tracker.to_commit() == committable
    assert tracker.in_flight == 0


def test_a_token_of_an_older_ownership_has_no_effect() -> None:
    tracker = OffsetTracker(count(1))
    tracker.assign([("x", 0)])
    older = tracker.epoch("x", 0)
    assert older is not None
    tracker.read("x", 0, 5)
    tracker.assign([("x", 0)])
    tracker.read("x", 0, 5)
    tracker.finish("x", 0, 5, older)
    assert tracker.to_commit() == {}
    assert tracker.in_flight == 1


def test_undelivered_offsets_are_committed_after_finished_messages() -> None:
    tracker = OffsetTracker(count(1))
    tracker.assign([("t", 0)])
    epoch = tracker.epoch("t", 0)
    assert epoch is not None
    tracker.read("t", 0, 5)
    tracker.advance("t", 0, 8)  # markers of transactions lie at 6 and 7
    assert tracker.to_commit() == {}, "nothing past unfinished work"
    tracker.finish("t", 0, 5, epoch)
    assert tracker.to_commit() == {("t", 0): 8}
    tracker.committed({("t", 0): 8})
    tracker.advance("t", 0, 9)
    assert tracker.to_commit() == {("t", 0): 9}
    tracker.advance("t", 0, 7)
    assert tracker.position("t", 0) == 9


def test_a_partition_with_only_transaction_markers_is_committed() -> None:
    tracker = OffsetTracker(count(1))
    tracker.advance("t", 0, 3)  # owned by another
    tracker.assign([("t", 0), ("t", 1)])
    tracker.advance("t", 0, 3)
    tracker.advance("t", 1, 0)
    assert tracker.to_commit() == {("t", 0): 3}
