"""Which servers a slot of a Redis Cluster has left. Pure.

A copy of a batch has the complete stamp of a server. It may move to another server and come back, and the stamp is
valid again. If the other server lost facts meanwhile, in a restart or a failover, it must not be valid: then the first
server has another name for this slot. A server that only keeps a slot for a while loses nothing, so a slot that moves
there and back needs no backfill.
"""

from __future__ import annotations

# A slot that moves more often comes back from the servers that it left last.
_MOST_LEFT = 20


class SlotHistory:
    """The servers of one slot, by their identities; an empty identity is unknown."""

    __slots__ = ("_arrived", "_left")

    def __init__(self) -> None:
        self._arrived: str | None = None
        # Each server that the slot has left, with the server that may have lost facts since then.
        self._left: dict[str, str] = {}

    def move(self, identity: str, *, to_replica: bool, target: str) -> None:
        """Note that the slot moves to another server.

        :param identity: the server that it leaves.
        :param to_replica: whether the other server was a replica of this one, which may lack its newest facts.
        :param target: the other server.
        """
        # Where the slot came from is known only after its first move. Nothing can come back before that.
        if to_replica or not identity or identity != self._arrived:
            self._left = dict.fromkeys(self._left, identity or "unknown")
        self._left.pop(identity, None)
        self._left[identity] = ""
        if len(self._left) > _MOST_LEFT:
            del self._left[next(iter(self._left))]
        self._arrived = target

    def learn(self, identity: str) -> None:
        """Note the identity of the server that has the slot, which was not known when the slot came."""
        self._arrived = self._arrived or identity

    def name(self, identity: str) -> str:
        """The name of a server for this slot: its identity, unless a stamp from before may not be valid any more."""
        lossy = self._left.get(identity, "")
        return f"{identity}~{lossy}" if lossy and identity else identity
