"""What Redis does not know of a batch, the permanent record may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bcs.domain.errors import StoreRefused, StoreUnavailable
from bcs.domain.state import BatchState
from bcs.domain.verdicts import BatchSummary
from bcs.store.base import Record


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the record has of a batch.

    :param whole: whether nothing can be missing; facts that still wait for the record might be.
    """

    state: BatchState
    whole: bool


@dataclass(frozen=True, slots=True)
class Recall:
    """Asks the record.

    :param waiting: how many entries wait for the record, of all replicas.
    """

    record: Record
    waiting: Callable[[], Awaitable[int]]

    async def unite(self, batch_id: str, known: BatchState) -> Recalled | None:
        """What the record has of a batch; None when it can't be asked now.

        :param known: what is known without it, and is given to the record where that does not have it: from a time when
            there was none.
        """
        if not self.record.reachable:
            return None
        try:
            # In this order: an entry leaves the queue only once the record has it.
            waiting = await self.waiting()
            recorded = await self.record.state(batch_id)
            missing = recorded.copy().absorb(known)
            if not missing.empty:
                await self.record.adopt({batch_id: missing})
        except StoreUnavailable:
            return None
        except StoreRefused:
            return Recalled(recorded, whole=False)
        return Recalled(recorded, whole=not waiting)

    def require_known(self, summary: BatchSummary) -> None:
        """Refuse to answer by what is known without the record, which is away, where that may be nearly nothing.

        A batch whose registration is known is known from its beginning. Of another one Redis may have forgotten nearly
        all, and what came since looks complete: one spellchecked essay, where thirty were registered.

        :raises StoreUnavailable: the batch may have a past.
        """
        if summary.expected is None:
            raise StoreUnavailable("postgresql", "the batch may have a past that only the record knows")
