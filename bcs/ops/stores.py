"""Reads the state store of the service, without a running service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.domain.state import BatchState
from bcs.errors import ConfigurationError, StoreUnavailable
from bcs.runtime import running
from bcs.storage.redis.errors import reason
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.stored_batches import StoredBatches

# A command sends each request once, so a circuit breaker has nothing to protect.
_NEVER = 1_000_000


class StateInMemory(ConfigurationError):
    """The state is in the memory of another process."""

    def __init__(self) -> None:
        super().__init__(
            "BCS_USE_MOCK_REPOSITORY is set: the state is in the service's memory, and only the service can read it"
        )


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[RedisGateway]:
    """A connection to the Redis in the settings.

    :raises StoreUnavailable: Redis does not answer, or the server is not Redis, or it has no such database.
    """
    gateway = RedisGateway(
        settings.redis_url,
        max_connections=1,
        deadline_seconds=settings.redis_deadline_seconds,
        breaker_failures=_NEVER,
        breaker_open_seconds=settings.redis_breaker_open_seconds,
    )
    try:
        yield gateway
    except RedisError as error:
        raise StoreUnavailable("redis", reason(error)) from error
    finally:
        await gateway.aclose()


def read_batch(settings: Settings, batch_id: str) -> tuple[BatchState, int]:
    """Read the state and the version of a batch, and write nothing.

    :raises StateInMemory: this process can't read the store.
    :raises StoreUnavailable: Redis does not answer.
    :raises StoreCorrupted: the stored data was not written by BCS.
    """
    if settings.use_mock_repository:
        raise StateInMemory

    async def read() -> tuple[BatchState, int]:
        async with connected(settings) as gateway:
            stored = await StoredBatches(gateway, key_prefix=settings.redis_key_prefix).read(batch_id)
            return stored.state, stored.version

    # The error has all details; log lines would only repeat them.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return running.run(read)
