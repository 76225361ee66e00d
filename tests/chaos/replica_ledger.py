"""What the members of one consumer group did: what each was given, read, and asked to commit; and whether it had the
right to. Told by ``replica_wire``, which overhears them."""

from collections import defaultdict, deque
from dataclasses import dataclass

from bcs.storage.ports import StateStore
from tests.chaos.history import Told

Partition = tuple[str, int]


@dataclass
class Commit:
    """One request to commit.

    :param port: of the client's end of the connection.
    :param revoked: those of its partitions that were not this member's when it asked.
    :param taken: those that the broker has committed; None while it has not answered.
    """

    port: int
    offsets: dict[Partition, int]
    revoked: frozenset[Partition]
    taken: frozenset[Partition] | None = None

    @property
    def refused(self) -> bool:
        """Whether the broker has said no to any of it."""
        return self.taken is not None and self.taken != self.offsets.keys()


class GroupLedger:
    """What was said about one group.

    A member has the partitions that it was last given until it asks to join again, leaves, or any member is told of a
    later generation.

    :param generations: every one of which some member was told.
    :param read_again: how many messages were read once more by the next one who got their partition.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.generations: set[int] = set()
        self.commits: list[Commit] = []
        self.read_again = 0
        self._given: dict[str, tuple[int, int, frozenset[Partition]]] = {}
        self._reading: dict[Partition, tuple[int, int]] = {}

    def owned(self) -> dict[int, frozenset[Partition]]:
        """The port of each member that has partitions, and which."""
        newest = max(self.generations, default=-1)
        return {port: given for generation, port, given in self._given.values() if generation == newest and given}

    def given_up(self, member: str) -> None:
        """A member asked to join, or to leave: it has let go of what it had."""
        self._given.pop(member, None)

    def given(self, member: str, generation: int, port: int, partitions: frozenset[Partition]) -> None:
        """A member was given partitions."""
        self.generations.add(generation)
        self._given[member] = generation, port, partitions

    def reads(self, port: int, partition: Partition, offset: int) -> None:
        """A member asked for what comes from this offset on."""
        before_port, before = self._reading.get(partition, (port, offset))
        if port != before_port:
            self.read_again += max(0, before - offset)
        self._reading[partition] = port, offset

    def in_hand(self, port: int) -> int:
        """How many messages a member has read and not committed, at least."""
        committed = self.committed()
        return sum(
            max(0, self._reading[partition][1] - committed.get(partition, 0))
            for partition in self.owned().get(port, frozenset())
            if partition in self._reading
        )

    def asked(self, member: str, generation: int, port: int, offsets: dict[Partition, int]) -> Commit:
        """A member asked to commit."""
        of, _, given = self._given.get(member, (-1, port, frozenset()))
        is_current = generation == of == max(self.generations, default=-1)
        commit = Commit(port, offsets, frozenset(offsets) - (given if is_current else frozenset()))
        self.commits.append(commit)
        return commit

    def committed(self) -> dict[Partition, int]:
        """What the broker has taken, in the order in which it was asked.

        :raises AssertionError: it took a commit for a partition that was not its member's any more, or one that went
            backwards.
        """
        committed: dict[Partition, int] = {}
        for commit in self.commits:
            taken = commit.taken or frozenset()
            assert not commit.revoked & taken, f"{commit} was taken, though revoked before"
            for partition in taken:
                offset = commit.offsets[partition]
                assert offset >= committed.get(partition, 0), f"{commit} went back from {committed[partition]}"
                committed[partition] = offset
        return committed

    def figures(self) -> str:
        """In numbers."""
        refused = sum(commit.refused for commit in self.commits)
        late = [commit for commit in self.commits if commit.revoked]
        taken = sum(bool(commit.revoked & (commit.taken or frozenset())) for commit in late)
        return (
            f"{len(self.generations)} generations of the group, {len(self.commits)} commits, {refused} refused, "
            f"{len(late)} for revoked partitions, {taken} of these taken; {self.read_again} messages read again"
        )


class DurableFirst:
    """Sees to it that no offset is committed past an event whose effect is not in the store.

    :param behind: how many events were found durable when a commit past them was asked for.
    """

    def __init__(self, store: StateStore) -> None:
        self.behind = 0
        self._store = store
        self._ahead: defaultdict[Partition, deque[tuple[int, Told]]] = defaultdict(deque)
        self._asked: defaultdict[Partition, int] = defaultdict(int)

    def sent(self, told: Told, partition: Partition, offset: int) -> None:
        """An event lies there; to be told in the order of offsets."""
        self._ahead[partition].append((offset, told))

    async def check(self, offsets: dict[Partition, int]) -> None:
        """Look into the store before the broker gets a request to commit these."""
        for partition, offset in offsets.items():
            self._asked[partition] = max(self._asked[partition], offset)
        await self.check_all()

    async def check_all(self) -> None:
        """The same for events that we were told of only after a commit past them."""
        behind: defaultdict[str, list[tuple[Partition, int, Told]]] = defaultdict(list)
        for partition, ahead in self._ahead.items():
            while ahead and ahead[0][0] < self._asked[partition]:
                offset, told = ahead.popleft()
                behind[told.batch].append((partition, offset, told))
        for batch, events in behind.items():
            state = await self._store.state(batch)
            for partition, offset, told in events:
                durable = state.merge(told.delta).empty
                assert durable, f"{partition} is to be committed past {offset}, whose effect is not in the store"
            self.behind += len(events)
