"""Batches as they lie in Redis, for whoever needs no answer about them."""

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
    """What Redis has of batches.

    :param key_prefix: stands before every key.
    """

    def __init__(self, gateway: RedisGateway, *, key_prefix: str) -> None:
        self._gateway = gateway
        self._key_prefix = key_prefix

    def keys(self, batch_id: str) -> BatchKeys:
        """Where a batch lies."""
        return BatchKeys(self._key_prefix, batch_id)

    async def read(self, batch_id: str) -> StoredBatch:
        """A batch of one instant; nothing is written, not even a missing summary.

        :raises StoreUnavailable: no answer, and never a guess.
        :raises StoreCorrupted: what is stored is not what BCS writes.
        """
        keys = self.keys(batch_id)
        with corruption_named(keys):
            async with self._gateway.session() as session:
                # One transaction, since keys that expire between two reads would show half a batch.
                replies = await session.call(("MULTI",), *reads(keys), ("EXEC",))
        return await paced(decoding(keys, replies[-1], session.peer.identity))

    async def invalidate(self, batch_ids: Iterable[str]) -> None:
        """The record has got facts past Redis: whatever is here of these batches may lack something.

        :raises StoreUnavailable: whether that is known now is unknown.
        """
        for batch_id in batch_ids:
            keys = self.keys(batch_id)
            with corruption_named(keys):
                await self._gateway.call(
                    ("MULTI",),
                    ("HDEL", keys.meta, COMPLETE_STAMP_FIELD, FORMER_STAMP_FIELD),
                    # To delete what is not there would disturb no writer who has asked the record before.
                    ("SET", keys.summaries, ""),
                    ("DEL", keys.summaries),
                    ("EXEC",),
                )


@contextmanager
def corruption_named(keys: BatchKeys) -> Iterator[None]:
    """What the gateway raises as Redis's own error says that a key holds something that BCS did not put there."""
    try:
        yield
    except ResponseError as error:
        raise StoreCorrupted(keys.stem, str(error)) from error
