"""What is known of a batch, without a service: from Redis and from the record behind it."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.cli.records import read_recorded
from bcs.config.settings import Settings
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.ops.stores import read_batch
from bcs.storage.ports import POSTGRESQL, REDIS


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
    except StoreUnavailable:
        recorded = read_recorded(settings, batch_id)
        if recorded.expected is None:
            raise  # as the service would: Redis may know more of it
        return KnownBatch(recorded, None, POSTGRESQL)
    if state.empty:
        return KnownBatch(read_recorded(settings, batch_id), None, POSTGRESQL)
    try:
        state.merge(read_recorded(settings, batch_id))
    except StoreUnavailable:
        # The service goes by what Redis knows from the registration on, too. Less may be a part.
        if state.expected is None:
            raise
    return KnownBatch(state, version, REDIS)
