"""The Redis that a row stands on: one server, or with `BCS_TEST_CHAOS_REDIS=cluster` a cluster of three masters."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bcs.config.redis_servers import RedisKind, RedisServers
from bcs.config.store_urls import StoreUrl
from bcs.config.store_urls import redis_url as url_of_redis
from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.gateway import RedisGateway
from tests.chaos.servers import killed_at_the_end
from tests.support.fault_proxy import FaultProxy, LostReplies
from tests.support.proxied_cluster import ProxiedCluster
from tests.support.redis_cluster import RedisCluster

ON_A_CLUSTER = os.environ.get("BCS_TEST_CHAOS_REDIS") == "cluster"
_APPEND_ONLY = ("--appendonly", "yes")

AnyRedis = RedisGateway | ClusterNodes


class _PastProxies:
    """A URL of a cluster that leads past the proxies before its nodes.

    :param ports: the port of each node, by that of its proxy.
    """

    def __init__(self, url: StoreUrl, ports: dict[int, int]) -> None:
        self._url, self._ports = url, ports

    @property
    def address(self) -> str:
        return self._url.address

    @property
    def servers(self) -> RedisServers:
        return self._url.servers

    def at(self, host: str, port: int) -> StoreUrl:
        return self._url.at(host, self._ports.get(port, port))


@dataclass(frozen=True, kw_only=True)
class ChaosRedis:
    """The servers of one Redis, and what goes wrong with all of them at a time.

    :param url: for services: it leads through the proxies.
    :param servers: which keep on disk what they acknowledged.
    :param proxies: before each server; empty where nothing is to go wrong on the way.
    :param cluster: None for one server.
    """

    url: str
    servers: list[EmbeddedServer]
    proxies: list[FaultProxy] = field(default_factory=list)
    cluster: RedisCluster | None = None

    def nodes(self, **options: Any) -> AnyRedis:
        """Connections past the proxies: who checks must see what is there."""
        if self.cluster is None:
            return connections_to(f"redis://{self.servers[0].address}", **options)
        ports = {node.announced_ports[0]: node.port for node in self.cluster.nodes}
        return _connections_to(cast("StoreUrl", _PastProxies(url_of_redis(self.url), ports)), ClusterNodes, **options)

    async def restart(self) -> None:
        """Start all servers after `kill`, and return when they take commands."""
        for server in self.servers:
            server.restart()
        if self.cluster is not None:
            await self.cluster.wait_until_ok()

    def kill(self) -> None:
        """Kill all servers, which keep what they have on disk."""
        for server in self.servers:
            server.kill()

    async def cut(self) -> None:
        """Cut all connections."""
        for proxy in self.proxies:
            await proxy.cut()

    def delay(self, seconds: float) -> None:
        """See `FaultProxy.delay`."""
        for proxy in self.proxies:
            proxy.delay(seconds)

    def drop_replies(self, after_request_matching: bytes | None, count: int = 1) -> None:
        """See `FaultProxy.drop_replies`; so many of all servers together."""
        lost = LostReplies(after_request_matching, count)
        for proxy in self.proxies:
            proxy.lose(lost)

    @property
    def replies_dropped(self) -> int:
        """How many replies were lost."""
        return sum(proxy.replies_dropped for proxy in self.proxies)

    @property
    def connections_accepted(self) -> int:
        """How many connections clients have made."""
        return sum(proxy.connections_accepted for proxy in self.proxies)

    def heal(self) -> None:
        """Take back what goes wrong."""
        for server in self.servers:
            server.thaw()
        for proxy in self.proxies:
            proxy.thaw()
            proxy.accept()
        self.delay(0)
        self.drop_replies(None, 0)


@asynccontextmanager
async def chaos_redis(
    directory: Path, *, proxied: bool = False, on_a_cluster: bool = ON_A_CLUSTER
) -> AsyncIterator[ChaosRedis]:
    """The Redis of one row; use it in the main thread, see `EmbeddedServer`.

    :param proxied: whether there are proxies before the servers.
    """
    async with AsyncExitStack() as stack:
        if on_a_cluster and proxied:
            cluster = await stack.enter_async_context(ProxiedCluster(directory / "cluster", options=_APPEND_ONLY))
            yield ChaosRedis(url=cluster.url, servers=_servers(cluster), proxies=cluster.proxies, cluster=cluster)
        elif on_a_cluster:
            plain = await stack.enter_async_context(RedisCluster(directory / "cluster", options=_APPEND_ONLY))
            yield ChaosRedis(url=plain.url, servers=_servers(plain), cluster=plain)
        else:
            valkey = embedded.valkey(directory / "valkey", append_only=True)
            # Not in a thread: a server ends with the thread that started it.
            stack.enter_context(killed_at_the_end(valkey))
            if not proxied:
                yield ChaosRedis(url=f"redis://{valkey.address}", servers=[valkey])
                return
            proxy = await stack.enter_async_context(FaultProxy(HOST, valkey.port))
            yield ChaosRedis(url=f"redis://{proxy.address}", servers=[valkey], proxies=[proxy])


def _servers(cluster: RedisCluster) -> list[EmbeddedServer]:
    return [node.server for node in cluster.nodes]


def connections_to(url: str, **options: Any) -> AnyRedis:
    """Connections for a test, whose circuit breaker hardly ever opens.

    :param options: of `RedisGateway`, which differ from the usual ones.
    """
    of_redis = url_of_redis(url)
    kind = ClusterNodes if of_redis.servers.kind is RedisKind.CLUSTER else RedisGateway
    return _connections_to(of_redis, kind, **options)


def _connections_to(url: StoreUrl, kind: type[AnyRedis], **options: Any) -> AnyRedis:
    usual = {"max_connections": 4, "deadline_seconds": 5, "breaker_failures": 10**6, "breaker_open_seconds": 0.01}
    return kind(url, **{**usual, **options})
