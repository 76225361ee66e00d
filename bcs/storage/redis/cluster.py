"""The nodes of a Redis Cluster.

Each master is a server like any other, with connections and a circuit breaker of its own, see `RedisGateway`. This
module knows which master has which slot. It asks the nodes when a call needs to know it, and with each probe; nothing
runs in the background. redis-py's cluster client is not used for commands: it retries by itself, needs more round
trips, and a cancelled call leaves its connection in the middle of a reply.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import structlog
from redis.exceptions import AskError

from bcs.config.store_urls import StoreUrl
from bcs.errors import RedisUnusable, StoreUnavailable
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.discovery import Discovery
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import ASK, MOVED, UnusableServer, redirection
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Node
from bcs.storage.redis.slot_history import SlotHistory
from bcs.storage.redis.slot_node import SlotNode, on_its_way
from bcs.storage.redis.topology import SLOTS, NodeAddress, Topology, slot_of
from bcs.storage.single_flight import SingleFlight

log = structlog.stdlib.get_logger("bcs.redis")

# Callers that all find a slot elsewhere need one question, and a cluster that changes all the time ten a second.
_REFRESH_SECONDS = 0.1
# Longer than the nodes need to tell each other where a slot is.
_NOTED_SECONDS = 1.0
# One in fifty nodes with a single slot is left out.
_NUMBERS_TRIED = 4
_FIRST_WAIT_SECONDS = 0.01
_LONGEST_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Note:
    """The owner of a slot by a MOVED, which is newer than what other nodes may say.

    :param until: until when, by the clock of the event loop.
    """

    owner: NodeAddress
    until: float


class ClusterNodes:
    """The masters of a cluster; a `Nodes`.

    :param url: names some nodes of the cluster. The others are found.
    :param max_connections: how many round trips may run at once on each node.
    :param deadline_seconds: how long a call may take, whatever it has to follow.
    :param breaker_failures: a node's circuit breaker opens after so many failures in a row.
    :param breaker_open_seconds: how long a circuit breaker stays open; then one call is tried.
    :param needs_identity: whether a component needs the identity of the servers, so that a missing one is a problem.
    :param jitter: returns a number from 0 to 1.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        max_connections: int,
        deadline_seconds: float,
        breaker_failures: int,
        breaker_open_seconds: float,
        needs_identity: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        def connections_to(address: NodeAddress) -> RedisGateway:
            return RedisGateway(
                url.at(*address),
                max_connections=max_connections,
                deadline_seconds=deadline_seconds,
                breaker_failures=breaker_failures,
                breaker_open_seconds=breaker_open_seconds,
                needs_identity=needs_identity,
                in_cluster=True,
            )

        self.address = url.address
        self._seeds = [NodeAddress(host, port) for host, port in url.servers.listed]
        self._connections_to = connections_to
        self._discovery = Discovery(lambda address: url.at(*address), deadline_seconds=deadline_seconds)
        self._deadline_seconds = deadline_seconds
        self._jitter = jitter
        self._topology: Topology | None = None
        self._owners: list[NodeAddress | None] = [None] * SLOTS
        self._histories: dict[int, SlotHistory] = {}
        self._notes: dict[int, _Note] = {}
        self._masters: dict[NodeAddress, RedisGateway] = {}
        self._retired: dict[NodeAddress, tuple[RedisGateway, float]] = {}
        self._slots: list[SlotNode | None] = [None] * SLOTS
        self._refreshing: SingleFlight[None] = SingleFlight()
        self._refreshed_at = -_REFRESH_SECONDS
        self._undiscovered: StoreUnavailable | None = None
        self._away: dict[NodeAddress, str] = {}
        self._dry_runs: dict[NodeAddress, DryRun] = {}
        self._seen: dict[NodeAddress, int] = {}
        self._logged: dict[NodeAddress, int] = {}

    def at(self, key: str, /) -> Node:
        """See `Nodes.at`."""
        slot = slot_of(key)
        return self._slots[slot] or self._new_slot_node(slot)

    def slot_node(self, slot: int) -> SlotNode:
        """See `slot_node.Cluster.slot_node`."""
        return self._slots[slot] or self._new_slot_node(slot)

    async def all_nodes(self) -> Sequence[Node]:
        """See `Nodes.all_nodes`."""
        await self._refresh()
        return list(self._masters.values())

    @property
    def circuit(self) -> str:
        """See `Nodes.circuit`."""
        circuits = {gateway.circuit for gateway in self._masters.values()}
        return next((state for state in ("closed", "half_open", "open") if state in circuits), "closed")

    @property
    def problem(self) -> str:
        """See `Nodes.problem`."""
        if self._topology is None:
            return self._undiscovered.cause if self._undiscovered else ""
        shards = self._topology.shards()
        found = [
            f"the shard {address} ({slots} of {SLOTS} slots) {problem}"
            for address, slots in shards.items()
            if (problem := self._problem_of(address))
        ]
        if uncovered := SLOTS - sum(shards.values()):
            found.append(f"{uncovered} of {SLOTS} slots have no master")
        return "; ".join(found)

    @property
    def partly_reachable(self) -> bool:
        """See `Nodes.partly_reachable`."""
        return bool(self.problem) and any(not self._problem_of(address) for address in self._masters)

    def _problem_of(self, address: NodeAddress) -> str:
        gateway = self._masters[address]
        if cause := self._away.get(address, ""):
            return f"is out of reach: {cause}"
        if gateway.circuit == "open":
            return "is out of reach"
        return f"refuses: {gateway.problem}" if gateway.problem else ""

    def ensure_reachable(self) -> None:
        """See `Nodes.ensure_reachable`."""
        if self._masters:
            if self.circuit == "open":
                next(iter(self._masters.values())).ensure_reachable()
        elif self._undiscovered:
            raise self._undiscovered

    async def ping(self, dry_run: DryRun | None = None) -> None:
        """See `Nodes.ping`. A node that does not answer becomes the `problem`, while another one answers."""
        await self._close_retired()
        try:
            await self._refresh()
        except StoreUnavailable:
            if not self._masters:
                raise
        away: dict[NodeAddress, str] = {}

        async def ping(address: NodeAddress, gateway: RedisGateway) -> None:
            try:
                await gateway.ping(dry_run and self._dry_run_at(address, dry_run))
            except StoreUnavailable as failure:
                # A slot that moves away at this moment is no problem.
                if not redirection(failure):
                    away[address] = failure.cause

        masters = dict(self._masters)
        async with anyio.create_task_group() as group:
            for address, gateway in masters.items():
                group.start_soon(ping, address, gateway)
        self._away = away
        for slot, history in self._histories.items():
            if owner := self._owners[slot]:
                history.learn(self._master(owner).identity)
        self._log_changes()
        if len(away) == len(masters):
            causes = "; ".join(f"{address}: {cause}" for address, cause in away.items())
            raise StoreUnavailable("redis", causes or "no node of the cluster has slots", address=self.address)

    async def ensure_usable(self) -> None:
        """See `Nodes.ensure_usable`."""
        try:
            await self._refresh()
        except StoreUnavailable as failure:
            if isinstance(failure.__cause__, UnusableServer) and failure.__cause__.for_good:
                raise RedisUnusable(failure.cause) from failure
            log.debug("redis_unavailable_at_start", problem=failure.cause)
        for gateway in list(self._masters.values()):
            await gateway.ensure_usable()

    async def aclose(self) -> None:
        """See `Nodes.aclose`."""
        for gateway in [*self._masters.values(), *(gateway for gateway, _ in self._retired.values())]:
            await gateway.aclose()
        await self._discovery.aclose()

    async def follow(
        self, node: SlotNode, failure: StoreUnavailable | None, attempt: int, left_seconds: float
    ) -> RedisGateway:
        """See `slot_node.Cluster.follow`."""
        before = node.gateway
        redirected = redirection(failure)
        with Deadline(left_seconds) as deadline:
            if failure and redirected == MOVED:
                self._note_moved(node, failure)
            elif redirected == "":
                # A node that can't be reached may have been named by a note that is not true any more.
                self._notes.pop(node.slot, None)
            if redirected != ASK:  # then the slot's node is still the same
                await self._refresh_for(node)
            if node.gateway is None:
                raise StoreUnavailable("redis", f"no node has the slot {node.slot}", unsent=True, address=self.address)
            if node.gateway is before and failure and not redirected and before.circuit == "open":
                raise failure
            # The first attempt at another node needs no wait.
            if attempt or (node.gateway is before and redirected not in (MOVED, ASK)):
                longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
                await anyio.sleep(longest * (0.5 + 0.5 * self._jitter()))
            return node.gateway
        assert deadline.expired  # noqa: S101 (the block returns or raises)
        cause = failure.cause if failure and not redirected else on_its_way(node.slot)
        address = failure.address if failure else self.address
        raise StoreUnavailable("redis", cause, late=True, address=address) from failure

    def named_by(self, failure: StoreUnavailable, node: SlotNode) -> RedisGateway:
        """See `slot_node.Cluster.named_by`."""
        return self._master(self._place_in(failure, node)[1])

    def _place_in(self, failure: StoreUnavailable, node: SlotNode) -> tuple[int, NodeAddress]:
        """The slot and the node that a MOVED or ASK names."""
        error = failure.__cause__
        assert isinstance(error, AskError)  # noqa: S101 (MovedError is a kind of it)
        asked = self._owners[node.slot]
        # A node that does not know an address leaves out the host: it is the host that was asked.
        return error.slot_id, NodeAddress(error.host or (asked.host if asked else ""), error.port)

    def _note_moved(self, node: SlotNode, failure: StoreUnavailable) -> None:
        slot, owner = self._place_in(failure, node)
        self._notes[slot] = _Note(owner, anyio.current_time() + _NOTED_SECONDS)
        self._give(slot, owner)

    def _give(self, slot: int, owner: NodeAddress | None) -> None:
        """Note the owner of a slot."""
        before, self._owners[slot] = self._owners[slot], owner
        if before and owner and before != owner:
            history = self._histories.setdefault(slot, SlotHistory())
            replicas = self._topology.replicas.get(before, ()) if self._topology else ()
            left, target = self._master(before).identity, self._master(owner).identity
            history.move(left, to_replica=owner in replicas, target=target)
        if node := self._slots[slot]:
            node.gateway = self._master(owner) if owner else None
            node.history = self._histories.get(slot)

    async def _refresh_for(self, node: SlotNode) -> None:
        """Ask where the slots are, unless that was asked a moment ago."""
        if anyio.current_time() < self._refreshed_at + _REFRESH_SECONDS:
            if self._undiscovered and not self._masters:
                raise self._undiscovered
            return
        try:
            await self._refresh()
        except StoreUnavailable:
            if node.gateway is None:
                raise

    async def _refresh(self) -> None:
        """Ask the nodes where the slots are. Callers at one time share the question.

        :raises StoreUnavailable: no node gave an answer.
        """
        await self._refreshing.do("topology", self._discover)

    async def _discover(self) -> None:
        if self._topology is not None and anyio.current_time() < self._refreshed_at + _REFRESH_SECONDS:
            return
        try:
            topology = await self._discovery.topology(self._candidates(), self._topology)
        except StoreUnavailable as failure:
            failure.address = self.address
            self._undiscovered, self._refreshed_at = failure, anyio.current_time()
            raise
        self._undiscovered, self._refreshed_at = None, anyio.current_time()
        self._take_over(topology)

    def _candidates(self) -> list[NodeAddress]:
        """Whom to ask: first the nodes that MOVED named, since these know most, then masters that answer, then all."""
        replicas = self._topology.replicas.values() if self._topology else ()
        masters = sorted(
            self._masters, key=lambda address: (self._masters[address].circuit != "closed", self._jitter())
        )
        noted = [note.owner for note in self._notes.values()]
        return list(dict.fromkeys([*noted, *masters, *(one for each in replicas for one in each), *self._seeds]))

    def _take_over(self, topology: Topology) -> None:
        now = anyio.current_time()
        if self._topology and self._topology.ranges == topology.ranges and not self._notes:
            self._topology = topology
            return
        owners = topology.owners()
        for slot, note in list(self._notes.items()):
            if now < note.until:
                owners[slot] = note.owner
            else:
                del self._notes[slot]
        in_use = set(topology.shards()) | {note.owner for note in self._notes.values()}
        for address in in_use:
            self._master(address)
        for slot, owner in enumerate(owners):
            self._give(slot, owner)
        # Only now, because the former one says which replicas took over.
        self._topology = topology
        for address in self._masters.keys() - in_use:
            # Calls may still wait for its replies.
            self._retired[address] = self._masters.pop(address), now

    def _master(self, address: NodeAddress) -> RedisGateway:
        if address not in self._masters:
            retired = self._retired.pop(address, None)
            self._masters[address] = retired[0] if retired else self._connections_to(address)
        return self._masters[address]

    def _new_slot_node(self, slot: int) -> SlotNode:
        node = self._slots[slot] = SlotNode(slot, self, deadline_seconds=self._deadline_seconds)
        self._give(slot, self._owners[slot])
        return node

    async def _close_retired(self) -> None:
        now = anyio.current_time()
        for address, (gateway, since) in list(self._retired.items()):
            if now >= since + self._deadline_seconds:
                del self._retired[address]
                await gateway.aclose()

    def _dry_run_at(self, address: NodeAddress, dry_run: DryRun) -> DryRun | None:
        """The dry run with keys whose slot the node has; None where none is found, as where it has no slot."""
        found = self._dry_runs.get(address)
        if found and self._owners[slot_of(found.key)] == address:
            return found
        slots = self._topology.shards().get(address, 0) if self._topology else 0
        numbers = range(_NUMBERS_TRIED * SLOTS // slots) if slots else ()
        for number in numbers:
            tried = dry_run.numbered(number)
            if self._owners[slot_of(tried.key)] == address:
                self._dry_runs[address] = tried
                return tried
        return None

    def _log_changes(self) -> None:
        shards = self._topology.shards() if self._topology else {}
        changes_still, self._seen = shards != self._seen, shards
        # While slots move one after another, only their end is logged.
        if shards == self._logged or (changes_still and shards.keys() == self._logged.keys()):
            return
        for address in sorted(shards.keys() | self._logged.keys()):
            before, now = self._logged.get(address, 0), shards.get(address, 0)
            if before != now:
                log.warning("redis_shard_changed", address=str(address), slots=now, slots_before=before)
        self._logged = shards
