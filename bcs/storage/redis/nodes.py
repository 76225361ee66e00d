"""What the stores need of Redis: the node that has a key, and what is said about all nodes.

A single server is one node that has every key: `RedisGateway` is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from bcs.storage.redis.commands import Command
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.multiplexer import Replies

if TYPE_CHECKING:
    from bcs.storage.redis.gateway import RedisSession


class Node(Protocol):
    """The way to the server that has a key. All keys of one call must have one hash tag."""

    @property
    def address(self) -> str:
        """The address without the login, with the name of its setting."""
        ...

    @property
    def server(self) -> Node:
        """The server that has the key now. It takes commands with several hash tags, and follows no key elsewhere."""
        ...

    @property
    def circuit(self) -> str:
        """The circuit breaker's state: `closed`, `open` or `half_open`."""
        ...

    @property
    def identity(self) -> str:
        """The identity of the server at the last check of any connection; empty where it is unknown."""
        ...

    def ensure_reachable(self) -> None:
        """Fail at once while the circuit breaker is open.

        :raises StoreUnavailable: the circuit breaker is open.
        """
        ...

    async def call(self, *commands: Command) -> Replies:
        """Send commands in one round trip and return their replies. Cancellation waits for the replies.

        :raises StoreUnavailable: no answer in time, or Redis refused a command; the commands may or may not have been
            carried out.
        :raises ResponseError: a key has another type, or a consumer group is missing or exists already.
        """
        ...

    async def call_multiplexed(self, *commands: Command) -> Replies:
        """Send commands in one round trip with the commands of all other callers in this turn of the event loop.

        For small and frequent calls only, because a large reply would delay the replies of the other callers.

        :raises StoreUnavailable: as for `call`.
        :raises ResponseError: as for `call`.
        """
        ...

    def session(self) -> AbstractAsyncContextManager[RedisSession]:
        """A connection for several round trips under one deadline, for a transaction with WATCH.

        Cancellation by anyio waits until the block has ended, at most until the deadline. Cancellation by asyncio,
        which ends an overdue request, ends the block at once, and the connection is dropped.

        :raises SlotMoves: the keys are moving to another node; nothing was written.
        :raises StoreUnavailable: as for `call`.
        """
        ...


class Nodes(Protocol):
    """The servers of one Redis."""

    @property
    def address(self) -> str:
        """The addresses of the setting without the login, with its name."""
        ...

    @property
    def circuit(self) -> str:
        """The state of the circuit breaker, `closed`, `open` or `half_open`; of several, the best."""
        ...

    @property
    def problem(self) -> str:
        """What is wrong with Redis although it answers; empty without a problem."""
        ...

    @property
    def partly_reachable(self) -> bool:
        """True if some nodes have a problem, and others have none."""
        ...

    def at(self, key: str, /) -> Node:
        """The node that has a key. Makes no request."""
        ...

    async def all_nodes(self) -> Sequence[Node]:
        """Every node that stores data.

        :raises StoreUnavailable: no node says which nodes there are.
        """
        ...

    def ensure_reachable(self) -> None:
        """Fail at once while no node can be reached.

        :raises StoreUnavailable: every circuit breaker is open.
        """
        ...

    async def ping(self, dry_run: DryRun | None = None) -> None:
        """Send a PING, even while the circuit breaker is open, and check whether Redis would accept some commands.

        :param dry_run: commands that are not carried out. A refusal of a read is an error, that of a write becomes the
            `problem`.
        :raises StoreUnavailable: no answer in time, or Redis would refuse a read.
        """
        ...

    async def ensure_usable(self) -> None:
        """Refuse a server that BCS does not support. A server that is away passes, because it may be usable later.

        :raises RedisUnusable: the server answered, and BCS does not support it.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
