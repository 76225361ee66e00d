"""Connects commands to the state store of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.errors import ConfigurationError, StoreUnavailable
from bcs.storage.factory import redis_nodes
from bcs.storage.redis.errors import reason
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.topology import NodeAddress

# A command sends each request once, so a circuit breaker has nothing to protect.
_NEVER = 1_000_000


class StateInMemory(ConfigurationError):
    """The state is in the memory of another process."""

    def __init__(self) -> None:
        super().__init__(
            "BCS_USE_MOCK_REPOSITORY is set: the state is in the service's memory, and only the service can read it"
        )


@asynccontextmanager
async def connected(settings: Settings, *, needs_identity: bool = False) -> AsyncIterator[Nodes]:
    """A connection to the Redis in the settings.

    :param needs_identity: True to learn which server answers.
    :raises StoreUnavailable: Redis does not answer, or the server is not Redis, or it has no such database.
    """
    nodes = redis_nodes(settings, max_connections=1, breaker_failures=_NEVER, needs_identity=needs_identity)
    try:
        yield nodes
    except RedisError as error:
        raise StoreUnavailable("redis", reason(error)) from error
    finally:
        await nodes.aclose()


@asynccontextmanager
async def one_node(settings: Settings, address: NodeAddress) -> AsyncIterator[RedisGateway]:
    """A connection to one master of the Redis Cluster in the settings.

    :raises StoreUnavailable: it does not answer, or is no master.
    """
    node = RedisGateway(
        settings.redis.at(*address),
        max_connections=1,
        deadline_seconds=settings.redis_deadline_seconds,
        breaker_failures=_NEVER,
        breaker_open_seconds=settings.redis_breaker_open_seconds,
        in_cluster=True,
    )
    try:
        yield node
    finally:
        await node.aclose()
