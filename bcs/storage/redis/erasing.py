"""Erases batches in Redis."""

from __future__ import annotations

from dataclasses import replace

from bcs.domain.erasure import encode_tombstone
from bcs.errors import Tombstone
from bcs.storage.ports import ErasedCopy
from bcs.storage.redis.batch_codec import COUNT_FIELD, ERASED_FIELD, LAWS_FIELD, VERSION_FIELD, BatchKeys
from bcs.storage.redis.nodes import Nodes


async def look_in_redis(nodes: Nodes, keys: BatchKeys, *, law: str) -> tuple[ErasedCopy, list[str]]:
    """What Redis has of a batch, and the keys under which it may have summaries of it.

    :param law: the fingerprint of a law that may have a summary, also if the batch does not say so.
    :raises StoreUnavailable: no answer.
    """
    head = ("HMGET", keys.facts, VERSION_FIELD, COUNT_FIELD, LAWS_FIELD)
    replies = await nodes.at(keys.facts).call(*(("EXISTS", key) for key in keys.former), head)
    *former, (version, essays, laws) = replies
    fingerprints = {law, *filter(None, (laws or b"").decode().split(","))}
    return ErasedCopy(bool(version or any(former)), int(essays or 0)), sorted(map(keys.summary, fingerprints))


async def erase_in_redis(nodes: Nodes, keys: BatchKeys, tombstone: Tombstone, *, law: str) -> ErasedCopy:
    """Put a tombstone in the place of a batch. What an interrupted call has left is removed by the next one.

    :param law: as for `look_in_redis`.
    :raises StoreUnavailable: the batch may be erased or not.
    """
    node = nodes.at(keys.facts)
    [[seconds, microseconds]] = await node.call(("TIME",))
    now_us = int(seconds) * 1_000_000 + int(microseconds)
    # In one hash with the facts: nobody adds facts, or stores a summary, without seeing it.
    mark = (
        ("HSET", keys.facts, ERASED_FIELD, encode_tombstone(tombstone)),
        ("PEXPIRE", keys.facts, max(1, (tombstone.until_us - now_us) // 1000)),
    )
    await node.call(("MULTI",), *mark, ("EXEC",))
    copy, summaries = await look_in_redis(nodes, keys, law=law)
    # Before the facts, which say where the summaries are.
    [removed] = await node.call(("UNLINK", *summaries))
    await node.call(("MULTI",), ("UNLINK", keys.facts, *keys.former), *mark, ("EXEC",))
    return replace(copy, summaries=int(removed))
