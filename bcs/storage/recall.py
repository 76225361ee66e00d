"""What Redis does not know of a batch, the permanent record may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bcs.domain.slices import Sliced
from bcs.domain.state import BatchState
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.pace import paced
from bcs.storage.ports import Record


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the record has of a batch.

    :param mark: says that nothing is missing; None where facts that still wait for the record might be.
    """

    state: BatchState
    mark: str | None


@dataclass(frozen=True, slots=True)
class Recall:
    """Asks the record.

    What is once united is marked, with the identity of Redis and the making of the record's tables that it holds for.
    After a restart or a failover Redis may have less than it had acknowledged, and so may a record that was made anew
    or restored. Then nothing that was marked before is trusted, and each batch is united once more when it is asked
    for. A Redis that does not tell its identity may be another one at any time: nothing that it has is trusted.

    The identity of Redis is always that of the server from which what is known was read; see `redis_identity`.

    :param waiting: how many entries wait for the record, of all replicas.
    """

    record: Record
    waiting: Callable[[], Awaitable[int]]

    def trusts(self, mark: str | None, redis: str) -> bool:
        """True if nothing can be missing in what has this mark; a record that was never reached has none of its own.

        :param redis: the identity of the server that the mark was read from; empty where it does not tell.
        """
        if mark is None or not redis:
            return False
        marked, _, making = mark.partition("/")
        return marked == redis and self.record.identity in (making, None)

    def ensure_same_redis(self, mark: str | None, redis: str) -> None:
        """Refuse to answer by what another Redis left, while the record can't say what is missing in it.

        :param redis: as for `trusts`.
        :raises StoreUnavailable: it was marked in another one, or nobody can tell.
        """
        if not redis:
            raise StoreUnavailable("postgresql", "Redis tells no identity, and only the record knows what it may lack")
        if mark is not None and mark.partition("/")[0] != redis:
            raise StoreUnavailable("postgresql", "Redis is another one, and only the record knows what it may lack")

    async def unite(self, batch_id: str, known: BatchState, redis: str) -> Recalled | None:
        """What the record has of a batch; None when it can't be asked now.

        :param known: what is known without it, and is given to the record where that does not have it: from a time when
            there was none.
        :param redis: the identity of the server that it was read from; empty where it does not tell.
        """
        if not self.record.reachable:
            return None
        mark = f"{redis}/{self.record.identity}" if redis else None
        try:
            # In this order: an entry leaves the queue only once the record has it.
            waiting = await self.waiting()
            recorded = await self.record.state(batch_id)
            missing = await paced(_missing_in(recorded, known))
            if not missing.empty:
                await self.record.adopt({batch_id: missing})
        except StoreUnavailable:
            return None
        except StoreRefused:
            return Recalled(recorded, None)
        return Recalled(recorded, None if waiting else mark)

    def require_registered(self, registered: bool) -> None:
        """Refuse to answer by what is known without the record, which is away, where that may be nearly nothing.

        A batch whose registration is known is known from its beginning. Of another one Redis may have forgotten nearly
        all, and what came since looks complete: one spellchecked essay, where thirty were registered.

        :raises StoreUnavailable: the batch may have a past.
        """
        if not registered:
            raise StoreUnavailable("postgresql", "the batch may have a past that only the record knows")


def _missing_in(recorded: BatchState, known: BatchState) -> Sliced[BatchState]:
    united = yield from recorded.copying()
    missing = yield from united.merging(known)
    # The record may forget the batch before it gets this, and a list means nothing without its outcome.
    for phase, by_key in missing.outcome_marks.items():
        for key in by_key:
            missing.outcomes.setdefault(phase, {}).setdefault(key, known.outcomes[phase][key])
    return missing
