"""The children of a dynamic supervisor by key, and the delivery of messages to them."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from bcs.supervision.child import Child
from bcs.supervision.errors import MailboxClosed, MailboxFull
from bcs.supervision.mailbox import Mailbox
from bcs.supervision.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bcs.supervision.envelope import Reply

M = TypeVar("M")
T = TypeVar("T")

LISTED = 100  # maximum number of children in a snapshot


class KeyedChild(Child, Generic[M]):
    """A child with its mailbox, and the attempt that handles the envelopes.

    :param key: the key of the child
    :param mailbox: the mailbox of the child
    """

    __slots__ = ("backing_off", "own_mailbox")

    def __init__(self, key: str, mailbox: Mailbox[M]) -> None:
        super().__init__(key, mailbox)
        self.own_mailbox = mailbox

    def forget_run(self) -> None:
        """Reset the state that belongs to one run of the supervisor."""
        super().forget_run()
        self.backing_off = False  # while True, no envelope starts the child


class KeyedChildren(Generic[M]):
    """Makes a child when the first message for its key arrives, and limits the number of children.

    :param name: the name of the supervisor, for errors
    :param make_mailbox: makes the mailbox for a key
    :param max_children: the maximum number of children at a time
    :param wake: called after an envelope was put into a child's mailbox, so that the child starts to work; with True
        after an ask, whose caller waits
    :raises ValueError: for limits below one
    """

    def __init__(
        self,
        name: str,
        make_mailbox: Callable[[str], Mailbox[M]],
        max_children: int,
        wake: Callable[[KeyedChild[M], bool], None],
    ) -> None:
        if max_children < 1:
            raise ValueError(f"{name}: max_children must be at least 1")
        make_mailbox("*")  # checks the limits now, and not when the first message arrives
        self.by_key: dict[str, KeyedChild[M]] = {}
        self._name = name
        self._make_mailbox = make_mailbox
        self._max_children = max_children
        self._wake = wake
        # First come, first served among the senders that wait for a place.
        self._places = anyio.Semaphore(max_children)
        self._waiting: dict[str, list[anyio.CancelScope]] = {}
        self._closed = False

    def deliver_nowait(self, key: str, message: M) -> None:
        """See `DynamicSupervisor.deliver_nowait`."""
        child = self._find_or_make(key)
        child.own_mailbox.send_nowait(message)
        self._wake(child, False)

    async def deliver(self, key: str, message: M) -> None:
        """See `DynamicSupervisor.deliver`."""
        while True:
            try:
                child = self._find_or_make(key)
            except MailboxFull:
                if not await self._wait_for_place(key):
                    continue
                child = self._make(key)
            try:
                child.own_mailbox.send_nowait(message)
            except MailboxFull:
                try:
                    await child.own_mailbox.send(message)
                except MailboxClosed:
                    if self._closed:
                        raise
                    continue  # the child was retired while this call waited
            self._wake(child, False)
            return

    async def ask(self, key: str, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """See `DynamicSupervisor.ask`."""
        child = self._find_or_make(key)
        try:
            reply = child.own_mailbox.post(build)
        except BaseException:
            # `build` failed: if the child was made for this message, the child has no work.
            if not child.own_mailbox.depth and child.attempt is None:
                self.remove(child)
            raise
        self._wake(child, True)
        return await child.own_mailbox.answer(reply, timeout_seconds)

    def nodes(self, unresponsive: Collection[str], now: float, *, running: bool) -> tuple[Snapshot, ...]:
        """The nodes of a snapshot: at most a hundred children, the unresponsive ones first.

        :param unresponsive: the keys of the children whose attempts ignore their cancellation
        :param now: the current time, in seconds of anyio's clock
        :param running: True if the supervisor runs
        """
        others = (key for key in self.by_key if key not in unresponsive) if unresponsive else self.by_key
        children = [self.by_key[key] for key in islice(chain(unresponsive, others), LISTED)]
        # Between two runs no child backs off: the next run starts all children.
        return tuple(
            child.node("actor", State.BACKING_OFF if running and child.backing_off else State.IDLE, now)
            for child in children
        )

    def remove(self, child: KeyedChild[M]) -> None:
        """Remove a child whose mailbox is empty.

        :param child: the child
        """
        del self.by_key[child.name]
        child.own_mailbox.close()
        self._places.release()

    def close(self) -> None:
        """Close all mailboxes, and accept no more messages."""
        self._closed = True
        for child in self.by_key.values():
            child.own_mailbox.close()
        for key in list(self._waiting):
            self._end_waits(key)

    def _find_or_make(self, key: str) -> KeyedChild[M]:
        child = self.by_key.get(key)
        if child is not None:
            return child
        if self._closed:
            raise MailboxClosed(self._name)
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            raise MailboxFull(self._name, self._max_children) from None
        return self._make(key)

    def _make(self, key: str) -> KeyedChild[M]:
        """Make a child. The caller holds a place, and must put an envelope into the mailbox before it awaits."""
        child = self.by_key[key] = KeyedChild(key, self._make_mailbox(key))
        self._end_waits(key)
        return child

    async def _wait_for_place(self, key: str) -> bool:
        """Wait for a place for a new child; False if no place is needed: the child exists, or the tree ended."""
        with anyio.CancelScope() as scope:
            self._waiting.setdefault(key, []).append(scope)
            try:
                await self._places.acquire()
            finally:
                self._waiting[key].remove(scope)
                if not self._waiting[key]:
                    del self._waiting[key]
        if scope.cancelled_caught:
            return False
        if self._closed or key in self.by_key:
            self._places.release()  # the place became free in the same moment
            return False
        return True

    def _end_waits(self, key: str) -> None:
        for scope in self._waiting.get(key, ()):
            scope.cancel()
