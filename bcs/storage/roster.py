"""Limits how many essays a batch may have, and caches the sizes of batches."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from bcs.errors import TooManyEssays

_MOST_BATCHES = 10_000


class Roster:
    """Refuses facts that would give a batch too many essays. Facts about essays that the batch has are never refused.

    :param limit: how many essays a batch may have; None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._sizes: dict[str, int] = {}

    def note_size(self, batch_id: str, essays: int) -> None:
        """Remember how many essays a batch has."""
        if self._limit is None:
            return
        self._sizes.pop(batch_id, None)
        self._sizes[batch_id] = essays
        if len(self._sizes) > _MOST_BATCHES:
            del self._sizes[next(iter(self._sizes))]

    def has_room(self, batch_id: str, essays: int) -> bool:
        """True if the batch has room for so many more essays, by its last known size.

        Another process may have added essays since then.
        """
        if self._limit is None or not essays:
            return True
        size = self._sizes.get(batch_id)
        return size is not None and size + essays <= self._limit

    def ensure_room(self, size: int, new_essays: Iterable[str]) -> None:
        """Refuse too many new essays.

        :param size: how many essays the batch has.
        :param new_essays: essays that the batch does not have yet.
        :raises TooManyEssays: the batch would have more essays than the limit.
        """
        new = frozenset(new_essays)
        if self._limit is not None and new and size + len(new) > self._limit:
            raise TooManyEssays(self._limit, size, new)

    def ensure_room_among(self, known: Collection[str], essays: Collection[str]) -> None:
        """Refuse too many new essays, by the ids of the known essays.

        :raises TooManyEssays: the batch would have more essays than the limit.
        """
        if self._limit is not None and len(known) + len(essays) > self._limit:
            self.ensure_room(len(known), _new_in(known, essays))


def _new_in(known: Container[str], essays: Iterable[str]) -> Iterable[str]:
    return (essay for essay in essays if essay not in known)
