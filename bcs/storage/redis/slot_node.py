"""The way to the keys of one slot of a Redis Cluster, wherever the slot is.

A call goes to the slot's node as to a single server. A call that surely was not carried out is sent again, as a whole
and within its own deadline: one that could not be sent, and one that the node refused because the slot is elsewhere, is
moving, or because the node can't answer at all. A transaction is refused as a whole, so nothing is done twice.

While a slot moves, some of its keys are on one node and some on another. A single command finds its key by ASK; a
transaction waits for the end of the move. Several commands without a transaction are sent one by one then. Their keys
may be in several slots of one node; the node of any of them takes the call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Protocol, TypeVar

from bcs.errors import SlotMoves, StoreUnavailable
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.commands import Command
from bcs.storage.redis.errors import ASK, redirection, surely_not_carried_out
from bcs.storage.redis.gateway import RedisGateway, RedisSession
from bcs.storage.redis.multiplexer import Replies
from bcs.storage.redis.nodes import Node
from bcs.storage.redis.slot_history import SlotHistory
from bcs.storage.redis.topology import slot_of

T = TypeVar("T")

_MULTI: Command = ("MULTI",)
_ASKING: Command = ("ASKING",)
_KEY_OF_SCRIPTS = 3
_MOVES = "the keys of this transaction move to another node of the cluster"
# With nothing left, the last attempt fails for the lack of time, and not for another reason.
_LEAST_SECONDS = 0.001

_Send = Callable[[RedisGateway, "tuple[Command, ...]", float], Awaitable[Replies]]


class Cluster(Protocol):
    """What a slot's node needs of the cluster."""

    @property
    def address(self) -> str:
        """The addresses of the setting."""
        ...

    async def follow(
        self, node: SlotNode, failure: StoreUnavailable | None, attempt: int, left_seconds: float
    ) -> RedisGateway:
        """Find out where a slot is, and wait before another attempt if that may help.

        :param failure: of the last attempt; None if there was none, because the slot's node is unknown.
        :param attempt: the number of attempts that followed a failure.
        :param left_seconds: how long this may take.
        :returns: the connections to the slot's node.
        :raises StoreUnavailable: another attempt has no chance, or no time is left.
        """
        ...

    def slot_node(self, slot: int) -> SlotNode:
        """The node that has another slot."""
        ...

    def named_by(self, failure: StoreUnavailable, node: SlotNode) -> RedisGateway:
        """The connections to the node that a MOVED or ASK names.

        :param node: the slot whose node sent it.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Sender:
    """The server that sent replies, under the name that it has for one slot."""

    identity: str


class SlotNode:
    """The node that has a slot; a `Node`.

    :ivar gateway: the connections to the node; None while it is unknown, or where no node has the slot.
    :ivar history: where the slot was before; None if it has not moved.
    """

    __slots__ = ("_cluster", "_deadline_seconds", "gateway", "history", "slot")

    def __init__(self, slot: int, cluster: Cluster, *, deadline_seconds: float) -> None:
        self.slot = slot
        self.gateway: RedisGateway | None = None
        self.history: SlotHistory | None = None
        self._cluster = cluster
        self._deadline_seconds = deadline_seconds

    @property
    def address(self) -> str:
        """See `Node.address`. Where the node is unknown, no other slot has this address."""
        return self.gateway.address if self.gateway else f"slot {self.slot} of {self._cluster.address}"

    @property
    def server(self) -> Node:
        """See `Node.server`."""
        return self.gateway or self

    @property
    def circuit(self) -> str:
        """See `Node.circuit`."""
        return self.gateway.circuit if self.gateway else "closed"

    @property
    def identity(self) -> str:
        """See `Node.identity`."""
        return self._name(self.gateway.identity) if self.gateway else ""

    def ensure_reachable(self) -> None:
        """See `Node.ensure_reachable`."""
        if self.gateway:
            self.gateway.ensure_reachable()

    async def call(self, *commands: Command) -> Replies:
        """See `Node.call`."""
        began = monotonic()
        failure: StoreUnavailable | None = None
        if gateway := self.gateway:
            try:
                return self._named(await gateway.call(*commands))
            except StoreUnavailable as refusal:
                failure = refusal
        return await self._resend(_send_alone, commands, failure, began)

    async def call_multiplexed(self, *commands: Command) -> Replies:
        """See `Node.call_multiplexed`."""
        began = monotonic()
        failure: StoreUnavailable | None = None
        if gateway := self.gateway:
            try:
                replies = await gateway.call_multiplexed(*commands)
            except StoreUnavailable as refusal:
                failure = refusal
            else:
                return self._named(replies) if self.history else replies
        return await self._resend(_send_multiplexed, commands, failure, began)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[RedisSession]:
        """See `Node.session`."""
        session: RedisSession | None = None
        try:
            async with AsyncExitStack() as stack:
                session = await self._session_in(stack)
                session.named = self._name
                yield session
        except StoreUnavailable as failure:
            if session is None or not redirection(failure):
                raise
            # Some commands of the transaction are on their way, so it can only begin again from its first command.
            await self._cluster.follow(self, failure, 0, self._deadline_seconds)
            raise SlotMoves("redis", _MOVES, answered=True, address=failure.address) from failure

    async def _session_in(self, stack: AsyncExitStack) -> RedisSession:
        began = monotonic()
        failure: StoreUnavailable | None = None
        if self.gateway:
            try:
                return await stack.enter_async_context(self.gateway.session())
            except StoreUnavailable as refusal:
                failure = refusal

        async def enter(gateway: RedisGateway, left_seconds: float, _: StoreUnavailable | None) -> RedisSession:
            return await stack.enter_async_context(gateway.session(deadline_seconds=left_seconds))

        return await self._again(enter, failure, began)

    async def _resend(
        self, send: _Send, commands: tuple[Command, ...], failure: StoreUnavailable | None, began: float
    ) -> Replies:
        async def attempt(gateway: RedisGateway, left_seconds: float, failure: StoreUnavailable | None) -> Replies:
            redirected = redirection(failure)
            if failure and redirected == ASK and len(commands) == 1:
                asked = self._cluster.named_by(failure, self)
                replies = await send(asked, (_ASKING, *commands), left_seconds)
                del replies[0]
                return replies
            if redirected and len(commands) > 1 and commands[0] != _MULTI:
                return await self._one_by_one(send, commands, began)
            return await send(gateway, commands, left_seconds)

        return self._named(await self._again(attempt, failure, began))

    async def _again(
        self,
        attempt: Callable[[RedisGateway, float, StoreUnavailable | None], Awaitable[T]],
        failure: StoreUnavailable | None,
        began: float,
    ) -> T:
        """Repeat an attempt until it was, or may have been, carried out.

        :param attempt: gets the connections to the slot's node, how many seconds are left, and the last failure.
        :param failure: of the first attempt; None if there was none.
        :param began: when the first attempt began, by `monotonic`, which costs each call less than the loop's clock.
        """
        for number in count():
            if failure and (failure.late or not surely_not_carried_out(failure)):
                raise failure
            gateway = await self._cluster.follow(self, failure, number, self._left_seconds(began))
            try:
                return await attempt(gateway, self._left_seconds(began), failure)
            except StoreUnavailable as refusal:
                if refusal.late and failure and redirection(failure):
                    # This attempt had only what the move of the slot had left of the deadline.
                    refusal.cause = f"{on_its_way(self.slot)}; then {refusal.cause}"
                failure = refusal
        raise AssertionError  # `count` does not end

    async def _one_by_one(self, send: _Send, commands: tuple[Command, ...], began: float) -> Replies:
        """Send commands one after another, each to the node that has its key, which may be in another slot.

        In order, so that a caller who reads what moves between keys of one batch misses nothing.

        :returns: the replies; their sender is that of the last one.
        """
        replies = Replies()
        for command in commands:
            answer = await self._cluster.slot_node(slot_of(_key_in(command)))._send_one(send, command, began)
            replies += answer
            replies.peer = answer.peer
        return replies

    async def _send_one(self, send: _Send, command: Command, began: float) -> Replies:
        failure: StoreUnavailable | None = None
        if gateway := self.gateway:
            try:
                return self._named(await send(gateway, (command,), self._left_seconds(began)))
            except StoreUnavailable as refusal:
                failure = refusal
        return await self._resend(send, (command,), failure, began)

    def _left_seconds(self, began: float) -> float:
        return max(began + self._deadline_seconds - monotonic(), _LEAST_SECONDS)

    def _named(self, replies: Replies) -> Replies:
        if self.history:
            replies.peer = _Sender(self.history.name(replies.peer.identity))
        return replies

    def _name(self, identity: str) -> str:
        return self.history.name(identity) if self.history else identity


def on_its_way(slot: int) -> str:
    """Why the commands of a slot are refused for a while."""
    return f"the slot {slot} is on its way to another node"


def _key_in(command: Command) -> str:
    """The key of a command that stands alone."""
    return str(command[_KEY_OF_SCRIPTS if command[0] in ("EVAL", "EVALSHA") else 1])


async def _send_alone(gateway: RedisGateway, commands: tuple[Command, ...], left_seconds: float) -> Replies:
    return await gateway.call(*commands, deadline_seconds=left_seconds)


async def _send_multiplexed(gateway: RedisGateway, commands: tuple[Command, ...], left_seconds: float) -> Replies:
    with Deadline(left_seconds):
        return await gateway.call_multiplexed(*commands)
    raise StoreUnavailable("redis", "it did not answer in time", late=True, address=gateway.address)
