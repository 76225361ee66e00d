"""Asks nodes of a Redis Cluster which node has which slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from bcs.config.store_urls import StoreUrl
from bcs.errors import StoreUnavailable
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.connecting import connection_pool
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.exchange import exchange
from bcs.storage.redis.server import NO_CLUSTER, fields_of
from bcs.storage.redis.topology import NodeAddress, Topology

# A node that has not answered for this time does not hold up the question to the next node.
_HEAD_START_SECONDS = 0.1
_NO_CLUSTER = "This instance has cluster support disabled"
_CAUSES_NAMED = 3


class Discovery:
    """Asks one node after another, each on a connection of its own, which no other call waits for.

    A connection that gave an answer is kept for the next question: to make one costs more than all else of a probe. A
    replica may be asked, too: a cluster's one address for clients may lead to any node.

    :param url_of: the URL of a node.
    :param deadline_seconds: how long all nodes together may take.
    """

    def __init__(self, url_of: Callable[[NodeAddress], StoreUrl], *, deadline_seconds: float) -> None:
        self._url_of = url_of
        self._deadline_seconds = deadline_seconds
        # They hold no connections, but the login and the TLS context.
        self._pools: dict[NodeAddress, ConnectionPool] = {}
        self._kept: dict[NodeAddress, Connection] = {}

    async def topology(self, candidates: Sequence[NodeAddress], known: Topology | None) -> Topology:
        """Ask until a node's answer is as good as what is known, else return the newest answer.

        :param candidates: the nodes, in the order in which they are asked; others are forgotten.
        :param known: the last answer. A cluster that was made anew has a lower epoch, so this is no condition.
        :raises StoreUnavailable: no node gave an answer.
        """
        for address in self._pools.keys() - candidates:
            del self._pools[address]
            await self._drop(address)
        found: list[Topology] = []
        failures: dict[NodeAddress, Exception] = {}

        async def ask(address: NodeAddress, ended: anyio.Event, scope: anyio.CancelScope) -> None:
            try:
                topology = await self._ask(address)
            except (RedisError, OSError, ValueError, RuntimeError) as error:
                failures[address] = error
            else:
                found.append(topology)
                if topology.is_as_good_as(known):
                    scope.cancel()
            ended.set()

        with Deadline(self._deadline_seconds):
            async with anyio.create_task_group() as group:
                for address in candidates:
                    ended = anyio.Event()
                    group.start_soon(ask, address, ended, group.cancel_scope)
                    with anyio.move_on_after(_HEAD_START_SECONDS):
                        await ended.wait()
        if found:
            # A node that was taken out of its cluster may keep the epoch.
            return max(found, key=lambda topology: (topology.covered > 0, topology.epoch, topology.covered))
        raise _no_answer(candidates, failures)

    async def aclose(self) -> None:
        """Close the kept connections."""
        for address in list(self._kept):
            await self._drop(address)

    async def _ask(self, address: NodeAddress) -> Topology:
        if kept := self._kept.pop(address, None):
            # The node, or what is between, may have closed it since.
            with suppress(RedisConnectionError, OSError):
                return await self._ask_on(kept, address)
        if address not in self._pools:
            self._pools[address] = connection_pool(self._url_of(address))
        return await self._ask_on(self._pools[address].make_connection(), address)  # type: ignore[no-untyped-call]

    async def _ask_on(self, connection: Connection, address: NodeAddress) -> Topology:
        answered = False
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # does nothing where it is connected
            slots, info = await exchange(connection, [("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")])
            answered = True
        finally:
            # Without waiting, because this may be cancelled.
            if answered:
                self._kept[address] = connection
            else:
                await connection.disconnect(nowait=True)
        if isinstance(slots, ResponseError):
            if str(slots).startswith(_NO_CLUSTER):
                raise UnusableServer(NO_CLUSTER, for_good=True) from slots
            raise slots
        return Topology.from_replies(slots, fields_of(info) if isinstance(info, bytes) else {}, address)

    async def _drop(self, address: NodeAddress) -> None:
        if kept := self._kept.pop(address, None):
            await kept.disconnect(nowait=True)


def _no_answer(candidates: Sequence[NodeAddress], failures: dict[NodeAddress, Exception]) -> StoreUnavailable:
    late = [address for address in candidates if address not in failures]
    causes = [f"{address}: {reason(error)}" for address, error in failures.items()]
    causes += [f"{address}: it did not answer in time" for address in late]
    named = "; ".join(causes[:_CAUSES_NAMED])
    more = f"; and {len(causes) - _CAUSES_NAMED} more" if len(causes) > _CAUSES_NAMED else ""
    failure = StoreUnavailable("redis", f"no node of the cluster answers: {named}{more}", late=bool(late), unsent=True)
    errors = sorted(failures.values(), key=lambda error: isinstance(error, UnusableServer), reverse=True)
    failure.__cause__ = errors[0] if errors else None
    return failure
