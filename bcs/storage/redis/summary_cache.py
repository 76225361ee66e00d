"""The summaries that this process has read or made lately."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from bcs.domain.progress import BatchSummary

# Some 5 MB.
_MOST_BATCHES = 4_096


@dataclass(slots=True)
class KeptSummary:
    """A summary, and what it was made from.

    :param redis: the identity of the server.
    :param version: the version of the batch there.
    :param law: the fingerprint of the law.
    :param stored: whether it is stored in Redis, or will be.
    """

    redis: str
    version: bytes
    summary: BatchSummary
    _: KW_ONLY
    law: str
    stored: bool = False


class SummaryCache:
    """Keeps the summaries of a limited number of batches, of each batch under the law that was asked for last."""

    def __init__(self) -> None:
        self._summaries: dict[str, KeptSummary] = {}

    def get(self, batch_id: str, law: str) -> KeptSummary | None:
        """The summary of a batch; the caller compares server and version with what Redis says now.

        :param law: the fingerprint of the law.
        """
        kept = self._summaries.get(batch_id)
        return kept if kept is not None and kept.law == law else None

    def forget(self, batch_id: str) -> None:
        """Forget the summary of a batch."""
        self._summaries.pop(batch_id, None)

    def put(self, batch_id: str, kept: KeptSummary) -> None:
        """Keep a summary, unless the server has no identity; the batch that was put first makes room."""
        self._summaries.pop(batch_id, None)
        if not kept.redis:
            return
        self._summaries[batch_id] = kept
        if len(self._summaries) > _MOST_BATCHES:
            del self._summaries[next(iter(self._summaries))]
