"""Redis Clusters whose nodes are reached by proxies alone, from clients and from each other: they can be separated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from bcs.devtools.servers.embedded import HOST
from tests.support.fault_proxy import FaultProxy
from tests.support.ports import held_port
from tests.support.redis_cluster import ClusterNode, RedisCluster

_FIRST_HOST_NUMBER = 10


class ProxiedCluster(RedisCluster):
    """A cluster with a proxy before each node's port for clients, and with one before its port for nodes.

    Each node connects from a loopback address of its own, so a proxy can tell who is there. Its replication comes to
    the port for clients. The proxies run in the event loop that enters the cluster, so nodes are suspected when a test
    holds that loop up: leave the ports for nodes alone where nodes need not be separated.

    :param between_nodes: whether there is a proxy before the ports for nodes as well.
    :param options: of `RedisCluster`.
    :ivar proxies: before the port for clients, in the order of `nodes`.
    """

    def __init__(self, directory: Path, *, between_nodes: bool = False, **options: Any) -> None:
        super().__init__(directory, **options)
        self.proxies: list[FaultProxy] = []
        self._bus_proxies: list[FaultProxy] = []
        self._between_nodes = between_nodes
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stack.aclose)
            await self.start()
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self._stack.aclose()

    def cut_off(self, node: ClusterNode) -> None:
        """Separate a node from all others: no byte passes in either direction. Clients still reach it."""
        for other in self.nodes:
            if other is not node:
                self._freeze_between(other, node)
                self._freeze_between(node, other)

    def cut_off_from_clients(self, node: ClusterNode) -> None:
        """Separate clients from a node, which the other nodes still reach unless `cut_off` separates them."""
        self.proxies[self.nodes.index(node)].freeze_from(HOST)

    def stop_replication(self, replica: ClusterNode, master: ClusterNode) -> None:
        """Hold what a master sends to its replica, while the nodes still hear each other."""
        self.proxies[self.nodes.index(master)].freeze_from(self._host_of(replica))

    def heal(self) -> None:
        """Let all bytes pass again, also those that were held."""
        for proxy in (*self.proxies, *self._bus_proxies):
            proxy.thaw()

    def _freeze_between(self, source: ClusterNode, target: ClusterNode) -> None:
        number = self.nodes.index(target)
        for proxy in (self.proxies[number], self._bus_proxies[number]):
            proxy.freeze_from(self._host_of(source))

    def _host_of(self, node: ClusterNode) -> str:
        return _host(self.nodes.index(node))

    async def _new_node(
        self, options: Sequence[str] = (), announced_ports: tuple[int, int] | None = None
    ) -> ClusterNode:
        assert announced_ports is None
        ports = held_port(), held_port() if self._between_nodes else 0
        options = [*options, "--cluster-announce-ip", HOST, "--bind-source-addr", _host(len(self.nodes))]
        node = await super()._new_node(options, ports)
        enter = self._stack.enter_async_context
        self.proxies.append(await enter(FaultProxy(HOST, node.port, ports[0])))
        if self._between_nodes:
            self._bus_proxies.append(await enter(FaultProxy(HOST, node.bus_port, ports[1])))
        return node


def _host(number: int) -> str:
    return f"127.0.0.{_FIRST_HOST_NUMBER + number}"
