"""The summaries that this process has read or made lately."""

from __future__ import annotations

from bcs.domain.progress import BatchSummary

# Some 5 MB.
_MOST_BATCHES = 4_096


class SummaryCache:
    """Keeps summaries with what they were made from: the server's identity, and the version of the batch there."""

    def __init__(self) -> None:
        self._summaries: dict[str, tuple[str, bytes, BatchSummary]] = {}

    def get(self, batch_id: str) -> tuple[str, bytes, BatchSummary] | None:
        """The identity, the version, and the summary; the caller compares both with what Redis says now."""
        return self._summaries.get(batch_id)

    def put(self, batch_id: str, redis: str, version: bytes, summary: BatchSummary) -> None:
        """Keep a summary; the batch that was put first makes room.

        :param redis: the identity of the server; without one the summary is not kept.
        """
        self._summaries.pop(batch_id, None)
        if not redis:
            return
        self._summaries[batch_id] = redis, version, summary
        if len(self._summaries) > _MOST_BATCHES:
            del self._summaries[next(iter(self._summaries))]
