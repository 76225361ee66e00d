"""Reads and invalidates batches in Redis, without a backfill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis.exceptions import ResponseError

from bcs.domain.erasure import decode_tombstone
from bcs.domain.state import BatchState
from bcs.errors import BatchErased, StoreCorrupted
from bcs.storage.pace import paced
from bcs.storage.redis.batch_codec import COUNT_FIELD, ERASED_FIELD, STAMP_FIELD, VERSION_FIELD, BatchKeys, StoredBatch
from bcs.storage.redis.batch_commands import decoding, decoding_state, reads
from bcs.storage.redis.nodes import Nodes

# No essay has this field: theirs begin with other letters.
_TOUCHED = "invalidated"


@dataclass(frozen=True, slots=True)
class BatchCopy:
    """The copy of a batch in Redis.

    :param version: 0 where the batch is unknown.
    :param stamp: the complete stamp, see `ArchiveBackfill`; None where the batch has none.
    :param redis: the identity of the server; empty where the server does not report one.
    """

    state: BatchState
    version: int
    stamp: str | None
    redis: str


@dataclass(frozen=True, slots=True)
class BatchHead:
    """What Redis knows of a copy without its facts.

    :param version: None where the batch is unknown, or only the former layout has it.
    :param stamp: the complete stamp; None where the batch has none.
    :param essays: how many essays the copy has.
    :param redis: the identity of the server; empty where the server does not report one.
    """

    version: int | None
    stamp: str | None
    essays: int
    redis: str


class StoredBatches:
    """The batches that are stored in Redis.

    :param key_prefix: the prefix of every key.
    """

    def __init__(self, nodes: Nodes, *, key_prefix: str) -> None:
        self._nodes = nodes
        self._key_prefix = key_prefix

    def keys(self, batch_id: str) -> BatchKeys:
        """The keys of a batch."""
        return BatchKeys(self._key_prefix, batch_id)

    async def read(self, batch_id: str, *, shared: bool = False, former: bool = True) -> StoredBatch:
        """Read a batch; nothing is written.

        :param shared: True for a batch that is known to be small: it is read over the shared connection.
        :param former: False for a batch that is known to have no keys of the former layout.
        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: BCS did not write these values.
        :raises BatchErased: the batch has a tombstone.
        """
        keys = self.keys(batch_id)
        commands = reads(keys, former=former)
        with as_corruption(keys):
            node = self._nodes.at(keys.facts)
            replies = await (node.call_multiplexed if shared else node.call)(*commands)
        stored = await paced(decoding(keys, replies, replies.peer.identity))
        if stored.erased:
            raise BatchErased(batch_id, stored.erased, in_redis=True)
        return stored

    async def head(self, batch_id: str) -> BatchHead:
        """Read the version of a batch, over the shared connection; nothing is written.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: BCS did not write these values.
        :raises BatchErased: the batch has a tombstone.
        """
        keys = self.keys(batch_id)
        with as_corruption(keys):
            replies = await self._nodes.at(keys.facts).call_multiplexed(
                ("HMGET", keys.facts, VERSION_FIELD, STAMP_FIELD, COUNT_FIELD, ERASED_FIELD)
            )
        version, stamp, essays, erased = replies[0]
        try:
            if erased is not None:
                # The facts may still be there, if the erasure was interrupted.
                raise BatchErased(batch_id, decode_tombstone(erased), in_redis=True)
            return BatchHead(
                None if version is None else int(version),
                None if stamp is None else stamp.decode(errors="replace"),
                int(essays or 0),
                replies.peer.identity,
            )
        except ValueError as error:
            raise StoreCorrupted(keys.stem, str(error)) from None

    async def copy(self, batch_id: str) -> BatchCopy:
        """Read the state of a batch; nothing is written.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: BCS did not write these values.
        :raises BatchErased: the batch has a tombstone.
        """
        stored = await self.read(batch_id)
        state = await paced(decoding_state(self.keys(batch_id), stored))
        return BatchCopy(state, stored.version or 0, stored.stamp, stored.redis)

    async def invalidate(self, batch_ids: Iterable[str]) -> None:
        """Remove the complete stamps of batches, because the archive got facts that Redis does not have.

        :raises StoreUnavailable: whether the stamps were removed is unknown.
        """
        for batch_id in batch_ids:
            keys = self.keys(batch_id)
            with as_corruption(keys):
                await self._nodes.at(keys.facts).call(
                    ("MULTI",),
                    # Other writers may have read the archive already, and their transactions must fail, also where no
                    # stamp is deleted. So a field is set first. A hash without another field is deleted with it.
                    ("HSET", keys.facts, _TOUCHED, 1),
                    ("HDEL", keys.facts, _TOUCHED, STAMP_FIELD),
                    ("EXEC",),
                )


@contextmanager
def as_corruption(keys: BatchKeys) -> Iterator[None]:
    """Raise `StoreCorrupted` for an error of Redis that the gateway leaves to callers: a key of another type."""
    try:
        yield
    except ResponseError as error:
        raise StoreCorrupted(keys.stem, str(error)) from error
