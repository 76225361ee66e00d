"""The state of a batch from Redis and the archive, without a service."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.domain.state import BatchState
from bcs.ops.read_only import batch_reader
from bcs.runtime import running
from bcs.storage.ports import POSTGRESQL


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """The state of a batch.

    :param version: None if the source counts no versions.
    :param source: the name of the store that answered.
    """

    state: BatchState
    version: int | None
    source: str


def read_known(settings: Settings, batch_id: str, law: CompletionLaw) -> KnownBatch:
    """The state of a batch as the service reads it. Nothing is written.

    :raises StateInMemory: this process can't read the store.
    :raises StoreError: the state can't be read.
    """

    async def read() -> KnownBatch:
        async with batch_reader(settings, law) as reader:
            state, version, source = await reader.state(batch_id)
        if version == 0 and not state.empty:
            return KnownBatch(state, None, POSTGRESQL)  # Redis has no copy
        return KnownBatch(state, version, source)

    # Log lines would only repeat the error.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return running.run(read)
