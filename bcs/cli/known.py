"""The state of a batch from Redis and the archive, without a service."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.cli.archive_reading import read_archived
from bcs.config.settings import Settings
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.ops.stores import read_batch
from bcs.storage.ports import POSTGRESQL, REDIS


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """The state of a batch.

    :param version: None if the source has no versions.
    :param source: `REDIS`, or `POSTGRESQL` if Redis does not have the batch or is down.
    """

    state: BatchState
    version: int | None
    source: str


def read_known(settings: Settings, batch_id: str) -> KnownBatch:
    """The merged state of a batch in Redis and the archive, as the service sees it. Nothing is written.

    One of the two may be away, as long as the other has something of the batch.

    :raises StateInMemory: this process can't read the store.
    :raises StoreError: the state can't be read.
    """
    if settings.database_url is None:
        return KnownBatch(*read_batch(settings, batch_id), REDIS)
    try:
        state, version = read_batch(settings, batch_id)
    except StoreUnavailable:
        archived = read_archived(settings, batch_id)
        if archived.expected is None:
            raise  # like the service, because Redis may have more of the batch
        return KnownBatch(archived, None, POSTGRESQL)
    if state.empty:
        return KnownBatch(read_archived(settings, batch_id), None, POSTGRESQL)
    try:
        state.merge(read_archived(settings, batch_id))
    except StoreUnavailable:
        # Like the service, this uses the state in Redis only if it has the registration. Otherwise the state may be a
        # part only.
        if state.expected is None:
            raise
    return KnownBatch(state, version, REDIS)
