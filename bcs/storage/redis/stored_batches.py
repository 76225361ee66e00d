"""Reads and invalidates batches in Redis, without a backfill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis.exceptions import ResponseError

from bcs.errors import StoreCorrupted
from bcs.storage.pace import paced
from bcs.storage.redis.batch_codec import COMPLETE_STAMP_FIELD, FORMER_STAMP_FIELD, BatchKeys
from bcs.storage.redis.batch_commands import StoredBatch, decoding, reads
from bcs.storage.redis.gateway import RedisGateway


class StoredBatches:
    """The batches that are stored in Redis.

    :param key_prefix: the prefix of every key.
    """

    def __init__(self, gateway: RedisGateway, *, key_prefix: str) -> None:
        self._gateway = gateway
        self._key_prefix = key_prefix

    def keys(self, batch_id: str) -> BatchKeys:
        """The keys of a batch."""
        return BatchKeys(self._key_prefix, batch_id)

    async def read(self, batch_id: str) -> StoredBatch:
        """Read a batch in one transaction; nothing is written, not even a missing summary.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: BCS did not write these values.
        """
        keys = self.keys(batch_id)
        with as_corruption(keys):
            async with self._gateway.session() as session:
                # One transaction, because keys can expire between two reads.
                replies = await session.call(("MULTI",), *reads(keys), ("EXEC",))
        return await paced(decoding(keys, replies[-1], session.peer.identity))

    async def invalidate(self, batch_ids: Iterable[str]) -> None:
        """Remove the complete stamps of batches, because the archive got facts that Redis does not have.

        :raises StoreUnavailable: whether the stamps were removed is unknown.
        """
        for batch_id in batch_ids:
            keys = self.keys(batch_id)
            with as_corruption(keys):
                await self._gateway.call(
                    ("MULTI",),
                    ("HDEL", keys.meta, COMPLETE_STAMP_FIELD, FORMER_STAMP_FIELD),
                    # Deleting a missing key would not make the transactions of other writers fail, which have already
                    # read the archive. So the key is set first.
                    ("SET", keys.summaries, ""),
                    ("DEL", keys.summaries),
                    ("EXEC",),
                )


@contextmanager
def as_corruption(keys: BatchKeys) -> Iterator[None]:
    """Raise `StoreCorrupted` for an error of Redis that the gateway leaves to callers: a key of another type."""
    try:
        yield
    except ResponseError as error:
        raise StoreCorrupted(keys.stem, str(error)) from error
