"""What is known of a batch, without a service: from Redis and from the record behind it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from bcs.commands.records import read_recorded
from bcs.commands.stores import read_batch
from bcs.contracts.batches import POSTGRESQL, REDIS
from bcs.domain.errors import StoreError
from bcs.domain.state import BatchState
from bcs.settings import Settings


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A batch's state.

    :param version: None where its source counts none.
    :param source: `REDIS`, or `POSTGRESQL` where Redis knows nothing or is away.
    """

    state: BatchState
    version: int | None
    source: str


def read_known(settings: Settings, batch_id: str) -> KnownBatch:
    """Everything that Redis and the record know of a batch, as the service would unite them; nothing is written.

    One of the two may be away, as long as the other knows something.

    :raises StateInMemory: there is no store that this process can read.
    :raises StoreError: no answer, and never a guess.
    """
    if settings.database_url is None:
        return KnownBatch(*read_batch(settings, batch_id), REDIS)
    try:
        state, version = read_batch(settings, batch_id)
    except StoreError:
        recorded = read_recorded(settings, batch_id)
        if recorded.empty:
            raise
        return KnownBatch(recorded, None, POSTGRESQL)
    if state.empty:
        return KnownBatch(read_recorded(settings, batch_id), None, POSTGRESQL)
    # While the record is away, the service goes by what Redis knows, too.
    with suppress(StoreError):
        state.absorb(read_recorded(settings, batch_id))
    return KnownBatch(state, version, REDIS)
