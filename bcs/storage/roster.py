"""How many essays a batch may have, and what is known of that without asking."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from bcs.errors import TooManyEssays

_MOST_BATCHES = 10_000


class Roster:
    """Refuses what would give a batch too many essays. Facts about essays that the batch has are never refused.

    :param limit: how many a batch may have; None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._sizes: dict[str, int] = {}

    def note(self, batch_id: str, essays: int) -> None:
        """A batch was seen to have so many essays."""
        if self._limit is None:
            return
        self._sizes.pop(batch_id, None)
        self._sizes[batch_id] = essays
        if len(self._sizes) > _MOST_BATCHES:
            del self._sizes[next(iter(self._sizes))]

    def has_room(self, batch_id: str, essays: int) -> bool:
        """True if it is known that so many essays are not too many, by what the batch was last seen to have.

        Another process may have given it more since.
        """
        if self._limit is None or not essays:
            return True
        size = self._sizes.get(batch_id)
        return size is not None and size + essays <= self._limit

    def ensure_room(self, size: int, strangers: Iterable[str]) -> None:
        """Refuse essays that a batch does not have yet, where they are too many.

        :param size: how many essays the batch has.
        :raises TooManyEssays: they are.
        """
        new = frozenset(strangers)
        if self._limit is not None and new and size + len(new) > self._limit:
            raise TooManyEssays(self._limit, size, new)

    def ensure_room_among(self, known: Collection[str], essays: Collection[str]) -> None:
        """The same, by the ids of the essays that a batch has.

        :raises TooManyEssays: they are too many.
        """
        if self._limit is not None and len(known) + len(essays) > self._limit:
            self.ensure_room(len(known), _strangers(known, essays))


def _strangers(known: Container[str], essays: Iterable[str]) -> Iterable[str]:
    return (essay for essay in essays if essay not in known)
