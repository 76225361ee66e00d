"""The children of a dynamic supervisor, by key, and the way in for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from bcs.supervision.child import Child
from bcs.supervision.errors import MailboxClosed, MailboxFull
from bcs.supervision.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcs.supervision.letter import Reply

M = TypeVar("M")
T = TypeVar("T")


class KeyedChild(Child, Generic[M]):
    """A mailbox with letters in it, and the attempt that works on them.

    :param key: what it is for
    :param mailbox: its letters
    """

    __slots__ = ("backing_off", "letters")

    def __init__(self, key: str, mailbox: Mailbox[M]) -> None:
        super().__init__(key, mailbox)
        self.letters = mailbox
        self.backing_off = False


class KeyedChildren(Generic[M]):
    """Makes a child when the first message for its key comes, and bounds how many there are.

    :param name: of the supervisor, for errors
    :param make_mailbox: makes the mailbox for a key
    :param max_children: how many there may be at a time
    :param rouse: called when a letter was put in, for the child to get to work
    """

    def __init__(
        self,
        name: str,
        make_mailbox: Callable[[str], Mailbox[M]],
        max_children: int,
        rouse: Callable[[KeyedChild[M]], None],
    ) -> None:
        self.by_key: dict[str, KeyedChild[M]] = {}
        self._name = name
        self._make_mailbox = make_mailbox
        self._max_children = max_children
        self._rouse = rouse
        # First come, first served, among those that wait for a place.
        self._places = anyio.Semaphore(max_children)
        self._closed = False

    def deliver_nowait(self, key: str, message: M) -> None:
        """See `DynamicSupervisor.deliver_nowait`."""
        child = self._find_or_make(key)
        child.letters.send_nowait(message)
        self._rouse(child)

    async def deliver(self, key: str, message: M) -> None:
        """See `DynamicSupervisor.deliver`."""
        while True:
            try:
                child = self._find_or_make(key)
            except MailboxFull:
                await self._places.acquire()
                if self._closed or key in self.by_key:
                    self._places.release()
                    continue
                child = self._make(key)
            try:
                await child.letters.send(message)
            except MailboxClosed:
                if self._closed:
                    raise
                continue  # the child was retired while this waited
            self._rouse(child)
            return

    async def ask(self, key: str, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """See `DynamicSupervisor.ask`."""
        child = self._find_or_make(key)
        try:
            reply = child.letters.post(build)
        finally:
            self._rouse(child)
        return await child.letters.answer(reply, timeout_seconds)

    def retire(self, child: KeyedChild[M]) -> None:
        """Forget a child whose mailbox is empty.

        :param child: which
        """
        del self.by_key[child.name]
        child.letters.close()
        self._places.release()

    def close(self) -> None:
        """Close all mailboxes, and take no more messages."""
        self._closed = True
        for child in self.by_key.values():
            child.letters.close()
        # One that waits for a place gets this one, sees that all is over, and hands it on to the next.
        self._places.release()

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
        """Make a child; whoever calls this holds a place and puts a letter in before anything else runs."""
        child = self.by_key[key] = KeyedChild(key, self._make_mailbox(key))
        return child
