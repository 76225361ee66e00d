"""The children of a dynamic supervisor, by key, and the way in for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from bcs.supervision.child import Child
from bcs.supervision.errors import MailboxClosed, MailboxFull
from bcs.supervision.mailbox import Mailbox
from bcs.supervision.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcs.supervision.envelope import Reply

M = TypeVar("M")
T = TypeVar("T")

LISTED = 100  # children in a snapshot


class KeyedChild(Child, Generic[M]):
    """A mailbox with envelopes in it, and the attempt that works on them.

    :param key: what it is for
    :param mailbox: its envelopes
    """

    __slots__ = ("backing_off", "own_mailbox")

    def __init__(self, key: str, mailbox: Mailbox[M]) -> None:
        super().__init__(key, mailbox)
        self.own_mailbox = mailbox

    def forget_run(self) -> None:
        """Forget what concerns one run of the supervisor only."""
        super().forget_run()
        self.backing_off = False  # waits, and no envelope starts it


class KeyedChildren(Generic[M]):
    """Makes a child when the first message for its key comes, and bounds how many there are.

    :param name: of the supervisor, for errors
    :param make_mailbox: makes the mailbox for a key
    :param max_children: how many there may be at a time
    :param wake: called when an envelope was put in, for the child to get to work
    :raises ValueError: for bounds that leave room for nothing
    """

    def __init__(
        self,
        name: str,
        make_mailbox: Callable[[str], Mailbox[M]],
        max_children: int,
        wake: Callable[[KeyedChild[M]], None],
    ) -> None:
        if max_children < 1:
            raise ValueError(f"{name}: max_children starts at 1")
        make_mailbox("*")  # what is wrong with its bounds is said now, not when the first message comes
        self.by_key: dict[str, KeyedChild[M]] = {}
        self._name = name
        self._make_mailbox = make_mailbox
        self._max_children = max_children
        self._wake = wake
        # First come, first served, among those that wait for a place.
        self._places = anyio.Semaphore(max_children)
        self._waiting: dict[str, list[anyio.CancelScope]] = {}
        self._closed = False

    def deliver_nowait(self, key: str, message: M) -> None:
        """See `DynamicSupervisor.deliver_nowait`."""
        child = self._find_or_make(key)
        child.own_mailbox.send_nowait(message)
        self._wake(child)

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
                await child.own_mailbox.send(message)
            except MailboxClosed:
                if self._closed:
                    raise
                continue  # the child was retired while this waited
            self._wake(child)
            return

    async def ask(self, key: str, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """See `DynamicSupervisor.ask`."""
        child = self._find_or_make(key)
        try:
            reply = child.own_mailbox.post(build)
        except BaseException:
            # One that was made for this message, which could not be built, has nothing to do.
            if not child.own_mailbox.depth and child.attempt is None:
                self.retire(child)
            raise
        self._wake(child)
        return await child.own_mailbox.answer(reply, timeout_seconds)

    def nodes(self, now: float, *, running: bool) -> tuple[Snapshot, ...]:
        """Their part of a snapshot: a hundred, the unresponsive ones first.

        :param now: the present, in seconds of anyio's clock
        :param running: whether the supervisor runs
        """
        children = sorted(self.by_key.values(), key=lambda child: not child.unresponsive)[:LISTED]
        # Between two runs nobody backs off: the next run starts them all.
        return tuple(
            child.node("actor", State.BACKING_OFF if running and child.backing_off else State.IDLE, now)
            for child in children
        )

    def retire(self, child: KeyedChild[M]) -> None:
        """Forget a child whose mailbox is empty.

        :param child: which
        """
        del self.by_key[child.name]
        child.own_mailbox.close()
        self._places.release()

    def close(self) -> None:
        """Close all mailboxes, and take no more messages."""
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
        """Make a child; whoever calls this holds a place and puts an envelope in before anything else runs."""
        child = self.by_key[key] = KeyedChild(key, self._make_mailbox(key))
        self._end_waits(key)
        return child

    async def _wait_for_place(self, key: str) -> bool:
        """Wait for a place for a new child; False when none is needed: another made that child, or all is over."""
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
            self._places.release()  # it came in the same moment
            return False
        return True

    def _end_waits(self, key: str) -> None:
        for scope in self._waiting.get(key, ()):
            scope.cancel()
