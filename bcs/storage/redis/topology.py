"""Which node of a Redis Cluster has which slots. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Self

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

SLOTS = REDIS_CLUSTER_HASH_SLOTS
"""How many slots every cluster has."""

UNKNOWN_EPOCH = -1

# Keys of streams and of busy batches come again and again. About 3 MB.
_SLOTS_KEPT = 16_384


class NodeAddress(NamedTuple):
    """Where a node of a cluster answers."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class SlotRange(NamedTuple):
    """Slots that follow each other, and their master.

    :param last: the last slot; it belongs to the range.
    """

    first: int
    last: int
    owner: NodeAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What one node says about its cluster.

    :param ranges: the slots that have a master, in order.
    :param replicas: the replicas of each master that has some.
    :param epoch: rises with each failover, and in most cases when a slot moves; `UNKNOWN_EPOCH` where the node did not
        say it.
    """

    ranges: Sequence[SlotRange]
    replicas: Mapping[NodeAddress, frozenset[NodeAddress]] = field(default_factory=dict)
    epoch: int = UNKNOWN_EPOCH

    @classmethod
    def from_replies(cls, slots: Any, info: Mapping[str, str], asked: NodeAddress) -> Self:
        """The topology in a node's replies to CLUSTER SLOTS and CLUSTER INFO.

        :param info: the fields of CLUSTER INFO; may be empty.
        :param asked: the node that replied. An address without a host means the same host.
        :raises ValueError: this is no reply to CLUSTER SLOTS.
        """
        ranges: list[SlotRange] = []
        replicas: dict[NodeAddress, frozenset[NodeAddress]] = {}
        try:
            for first, last, master, *others in slots:
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(f"slots from {first} to {last}")
                owner = _address(master, asked)
                ranges.append(SlotRange(first, last, owner))
                if others:
                    replicas[owner] = frozenset(_address(other, asked) for other in others)
            epoch = int(info.get("cluster_current_epoch", UNKNOWN_EPOCH))
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"CLUSTER SLOTS has an unusual reply: {error}") from error
        return cls(ranges=sorted(ranges), replicas=replicas, epoch=epoch)

    @property
    def covered(self) -> int:
        """How many slots have a master."""
        return sum(last + 1 - first for first, last, _ in self.ranges)

    def is_as_good_as(self, known: Topology | None) -> bool:
        """True if this is no older than a known topology, and has a master for as many slots.

        A node that was taken out of its cluster, or has lost its file of the cluster, answers, too: as a cluster of its
        own, with few slots or none.

        :param known: None where none is known. Then every slot needs a master.
        """
        if known is None:
            return self.covered == SLOTS
        return self.covered >= known.covered and (self.epoch == UNKNOWN_EPOCH or self.epoch >= known.epoch)

    def owners(self) -> list[NodeAddress | None]:
        """The master of each slot; None where the slot has none."""
        owners: list[NodeAddress | None] = [None] * SLOTS
        for first, last, owner in self.ranges:
            owners[first : last + 1] = [owner] * (last + 1 - first)
        return owners

    def shards(self) -> dict[NodeAddress, int]:
        """The masters, in the order of their addresses, each with the number of its slots."""
        shards = dict.fromkeys(sorted(found.owner for found in self.ranges), 0)
        for first, last, owner in self.ranges:
            shards[owner] += last + 1 - first
        return shards


@lru_cache(maxsize=_SLOTS_KEPT)
def slot_of(key: str) -> int:
    """The slot of a key."""
    return key_slot(key.encode())


def _address(node: Sequence[Any], asked: NodeAddress) -> NodeAddress:
    host, port = node[0] or b"", int(node[1])
    if host == b"?":  # names are preferred, and this node has none: its IP address is among further fields
        more = node[3] if len(node) > 3 else []
        host = dict(zip(more[::2], more[1::2], strict=False)).get(b"ip") or b""
    # A node that does not know its own address, or must not say it, leaves its host out.
    return NodeAddress(host.decode(errors="replace") or asked.host, port or asked.port)
