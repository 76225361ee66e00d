"""Real Redis Clusters of Valkey: slots that move, failovers, nodes that die, freeze, come back and join."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from tests.support.redis_servers import VALKEY, is_awake, redis_server
from tests.support.waiting import wait_until

SLOTS = 16_384
# A node is suspected after this time without an answer. Less, and a busy machine looks like a dead node.
NODE_TIMEOUT_MS = 1000
_KEYS_PER_STEP = 100
_MIGRATE_MS = 5000
_SETTLING_SECONDS = 30.0
# A node that does not answer a question is as good as away. Other servers that start hold up a test's event loop.
_ANSWER_SECONDS = 30.0


class ClusterNode:
    """One node. Its server can be killed, frozen and started again with the methods of `server`.

    :param options: of the server, as on its command line.
    :param announced_ports: the ports that it names to others, for clients and for nodes, where proxies listen; 0 or
        None for its own.
    """

    def __init__(
        self,
        directory: Path,
        options: Sequence[str],
        password: str | None,
        kind: str,
        announced_ports: tuple[int, int] | None = None,
    ) -> None:
        # Reserved as `EmbeddedServer` reserves the port for clients, because the node keeps it while it is down.
        self._bus = socket.socket()
        self._bus.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bus.bind((HOST, 0))
        self.bus_port: int = self._bus.getsockname()[1]
        self.id = ""
        self._password = password
        self._announced_ports = port, bus_port = announced_ports or (0, 0)
        options = [*options, "--cluster-announce-port", str(port), "--cluster-announce-bus-port", str(bus_port)]
        self.server: EmbeddedServer = redis_server(
            directory, "--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), *options, kind=kind
        )

    def __repr__(self) -> str:
        return f"<{self.server.directory.name} at {self.address}>"

    @property
    def port(self) -> int:
        """The port for clients; final once the server has been started."""
        return self.server.port

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return self.server.address

    @property
    def announced_ports(self) -> tuple[int, int]:
        """The ports that other nodes and clients of the cluster are told: for clients, and for nodes."""
        port, bus_port = self._announced_ports
        return port or self.port, bus_port or self.bus_port

    def client(self) -> Redis:
        """A client of this node alone, with all rights; use it in an `async with`."""
        return Redis(
            host=HOST,
            port=self.port,
            password=self._password,
            protocol=2,
            decode_responses=True,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    async def ask(self, *command: str | int) -> Any:
        """Send one command on a connection of its own.

        :raises RedisError: the node refused it, or did not answer.
        """
        async with self.client() as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Kill the server, and free both ports."""
        self.server.kill()  # a master that is asked to stop waits for its replicas
        self.server.stop()
        self._bus.close()


class RedisCluster:
    """Some masters with the same number of replicas each; slots are spread evenly.

    The nodes are started in the main thread, see `EmbeddedServer`. What changes the cluster returns when all nodes that
    run agree on the change.

    :param masters: how many shards.
    :param replicas: of each master.
    :param password: of the user `default`, on all nodes.
    :param full_coverage: True to have all nodes refuse everything while a slot has no master, which is the default of
        Redis and of Valkey, but not of managed services.
    :param options: of each server, as on its command line.
    :param kind: `VALKEY` or `REDIS`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        masters: int = 3,
        replicas: int = 0,
        password: str | None = None,
        full_coverage: bool = False,
        options: Sequence[str] = (),
        kind: str = VALKEY,
    ) -> None:
        self.nodes: list[ClusterNode] = []
        self.password = password
        self._directory = directory
        self._masters = masters
        self._replicas = replicas
        self._kind = kind
        self._options = [
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            *("--cluster-require-full-coverage", "yes" if full_coverage else "no"),
            # A replica takes over however long it had no master: tests freeze and kill for as long as they like.
            *("--cluster-replica-validity-factor", "0"),
            *("--repl-diskless-sync-delay", "0"),
            *(("--requirepass", password, "--masterauth", password) if password else ()),
            *options,
        ]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of BCS for this cluster, with all nodes that were started."""
        login = f":{self.password}@" if self.password else ""
        addresses = [f"{HOST}:{node.announced_ports[0]}" for node in self.nodes]
        return f"redis+cluster://{login}{','.join(addresses)}"

    @property
    def running(self) -> list[ClusterNode]:
        """The nodes whose processes exist and are not frozen."""
        return [node for node in self.nodes if is_awake(node.server)]

    async def start(self) -> None:
        """Start all nodes, and return when each of them takes commands for its slots."""
        try:
            masters = [await self._new_node() for _ in range(self._masters)]
            for number, node in enumerate(masters):
                first, end = (SLOTS * part // self._masters for part in (number, number + 1))
                # A node that finds data at its start takes the slots of its keys by itself.
                taken = {slot for low, high, _ in await _slots_of(node) for slot in range(low, high + 1)}
                if taken:
                    await node.ask("CLUSTER", "ADDSLOTS", *(slot for slot in range(first, end) if slot not in taken))
                else:
                    await node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
                await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            replicas = [(await self._new_node(), master) for master in masters for _ in range(self._replicas)]
            await self._join(masters[0], self.nodes[1:])
            for replica, master in replicas:
                await replica.ask("CLUSTER", "REPLICATE", master.id)
            await self.wait_until_ok()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all nodes, and free their ports."""
        for node in self.nodes:
            node.close()

    async def add_node(self, *, replica_of: ClusterNode | None = None) -> ClusterNode:
        """Start one more node and let it join: a master without slots, or a replica."""
        node = await self._new_node()
        await self._join(self._somebody(besides=node), [node])
        if replica_of is not None:
            await node.ask("CLUSTER", "REPLICATE", replica_of.id)
        await self.wait_until_ok()
        return node

    async def owner_of(self, slot: int) -> ClusterNode:
        """The master that has a slot, as a node that runs says."""
        for (first, last), node in (await self.slots()).items():
            if first <= slot <= last:
                return node
        raise AssertionError(f"slot {slot} has no master")

    async def slots_of(self, master: ClusterNode) -> range:
        """The first range of slots that a master has."""
        for (first, last), node in (await self.slots()).items():
            if node is master:
                return range(first, last + 1)
        raise AssertionError(f"{master} has no slot")

    async def node_of(self, key: str) -> ClusterNode:
        """The master that has a key's slot."""
        return await self.owner_of(key_slot(key.encode()))

    async def slots(self) -> dict[tuple[int, int], ClusterNode]:
        """The master of each range of slots: the first slot and the last one."""
        told = await _slots_of(self._somebody())
        return {(first, last): self._by_id(master) for first, last, master in told}

    async def masters(self) -> list[ClusterNode]:
        """The masters that have slots, in the order in which the nodes were started."""
        having = set(map(id, (await self.slots()).values()))
        return [node for node in self.nodes if id(node) in having]

    async def replicas_of(self, master: ClusterNode) -> list[ClusterNode]:
        """The replicas of a master that are not known to have failed."""
        lines = await self._somebody().ask("CLUSTER NODES")
        return [
            self._by_id(one["node_id"])
            for one in lines.values()
            if one["master_id"] == master.id and "fail" not in one["flags"].split(",")
        ]

    async def begin_move(self, slot: int, target: ClusterNode) -> ClusterNode:
        """Open a slot for its move. From now on its owner sends keys that it does not have to the target, with ASK.

        :returns: the owner.
        """
        source = await self.owner_of(slot)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    async def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode, keys: Iterable[str]) -> None:
        """Move some keys of a slot that `begin_move` has opened."""
        login = ["AUTH", self.password] if self.password else []
        await source.ask("MIGRATE", HOST, target.port, "", 0, _MIGRATE_MS, "REPLACE", *login, "KEYS", *keys)

    async def end_move(self, slot: int, target: ClusterNode) -> None:
        """Move the other keys of a slot, and give it to the target."""
        source = await self.owner_of(slot)
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_PER_STEP):
            await self.move_keys(slot, source, target, keys)
        # First the target: between the two commands, both nodes then take commands for the slot, and none refuses them.
        await self._give(slot, target, [target, source])

    async def move_slot(self, slot: int, target: ClusterNode) -> None:
        """Move a slot with its keys by SETSLOT and MIGRATE, as `redis-cli --cluster reshard` does."""
        await self.begin_move(slot, target)
        await self.end_move(slot, target)

    async def move_slots(self, first: int, last: int, target: ClusterNode) -> None:
        """Move a range of slots of one master with their keys, as a server of Valkey 9 does: all at one moment."""
        source = await self.owner_of(first)
        await source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id)

        async def has_them() -> bool:
            jobs = await source.ask("CLUSTER", "GETSLOTMIGRATIONS")
            states = [dict(zip(job[::2], job[1::2], strict=True))["state"] for job in jobs]
            assert "failed" not in states[:1], jobs
            return await self.owner_of(first) is await self.owner_of(last) is target

        await wait_until(has_them, _SETTLING_SECONDS, ignoring=(RedisError,))

    async def fail_over(self, replica: ClusterNode, *, how: str = "") -> None:
        """Have a replica take over, and wait until all nodes that run know it.

        :param how: `FORCE` where the master does not answer, `TAKEOVER` where most masters do not; else both sides
            agree, and the old master becomes a replica without a lost write.
        """
        await replica.ask("CLUSTER", "FAILOVER", *([how] if how else []))
        await self.wait_until_master(replica)

    async def wait_until_master(self, node: ClusterNode, timeout_seconds: float = _SETTLING_SECONDS) -> None:
        """Wait until all nodes that run say that a node is the master of slots."""

        async def is_master() -> bool:
            return all([any(master == node.id for *_, master in await _slots_of(other)) for other in self.running])

        await wait_until(is_master, timeout_seconds, ignoring=(RedisError, OSError))

    async def wait_until_ok(self, timeout_seconds: float = _SETTLING_SECONDS) -> None:
        """Wait until all nodes that run report the state `ok`, the same masters, and the same replicas, all ready."""

        async def is_ok() -> bool:
            running = self.running
            followed: list[int] = []
            views = []
            for node in running:
                async with node.client() as client:
                    replication = await client.info("replication")
                    state = await client.cluster("INFO")
                    if state["cluster_state"] != "ok" or replication.get("master_link_status", "up") != "up":
                        return False
                followed += [replication["master_port"]] if replication["role"] == "slave" else []
                told = await node.ask("CLUSTER", "SLOTS")
                # A replica is not named while it is not ready to take over.
                named = {one[2] for _, _, _, *others in told for one in others}
                views.append((sorted((first, last, master[1]) for first, last, master, *_ in told), named))
            masters = {port for _, _, port in views[0][0]}
            replicas = [port for port in followed if port in masters]
            return all(view == views[0] and len(view[1]) == len(replicas) for view in views)

        await wait_until(is_ok, timeout_seconds, ignoring=(RedisError, OSError))

    async def _new_node(
        self, options: Sequence[str] = (), announced_ports: tuple[int, int] | None = None
    ) -> ClusterNode:
        directory = self._directory / f"node-{len(self.nodes)}"
        node = ClusterNode(directory, [*self._options, *options], self.password, self._kind, announced_ports)
        self.nodes.append(node)
        node.server.start()
        node.id = await node.ask("CLUSTER", "MYID")
        return node

    async def _join(self, known: ClusterNode, new: Sequence[ClusterNode]) -> None:
        for node in new:
            await known.ask("CLUSTER", "MEET", HOST, *node.announced_ports)
        everybody = {node.id for node in self.running}

        async def know_each_other() -> bool:
            for node in self.running:
                told = await node.ask("CLUSTER NODES")
                met = {one["node_id"] for one in told.values() if "handshake" not in one["flags"]}
                if not met >= everybody:
                    return False
            return True

        await wait_until(know_each_other, _SETTLING_SECONDS, ignoring=(RedisError,))

    async def _give(self, slot: int, target: ClusterNode, first: Sequence[ClusterNode]) -> None:
        others = [node for node in await self.masters() if node not in first]
        for node in [*first, *others]:
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

        async def is_known() -> bool:
            views = [await _slots_of(node) for node in self.running]
            return all(
                any(first <= slot <= last and master == target.id for first, last, master in view) for view in views
            )

        await wait_until(is_known, _SETTLING_SECONDS, ignoring=(RedisError,))

    def _somebody(self, besides: ClusterNode | None = None) -> ClusterNode:
        return next(node for node in self.running if node is not besides)

    def _by_id(self, node_id: str) -> ClusterNode:
        return next(node for node in self.nodes if node.id == node_id)


@contextmanager
def running_cluster(directory: Path, **options: Any) -> Iterator[RedisCluster]:
    """A cluster for a fixture of a module or a session.

    :param options: of `RedisCluster`.
    """
    cluster = RedisCluster(directory, **options)
    anyio.run(cluster.start)
    try:
        yield cluster
    finally:
        cluster.close()


@asynccontextmanager
async def frozen(node: ClusterNode) -> AsyncIterator[None]:
    """A node that does not answer during a block, with connections that stay open."""
    node.server.freeze()
    try:
        yield
    finally:
        node.server.thaw()


def name_in(slots: range, prefix: str = "batch") -> str:
    """A name without braces whose slot, as a key or as a hash tag, is one of some slots."""
    return next(name for number in count() if key_slot((name := f"{prefix}-{number}").encode()) in slots)


async def _slots_of(node: ClusterNode) -> list[tuple[int, int, str]]:
    """What a node says: the first slot and the last one of each range, and the id of its master."""
    return [(first, last, master[2]) for first, last, master, *_ in await node.ask("CLUSTER", "SLOTS")]
