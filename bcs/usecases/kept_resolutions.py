"""Keeps resolutions, because many batches are in the same state, and the same batch is asked several times."""

from __future__ import annotations

from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.resolution import Resolution, resolve
from bcs.domain.resolve_options import PLAIN, ResolveOptions

_MOST_KEPT = 1_000

_State = tuple[str, int, int | None, tuple[PhaseProgress | None, ...]]


class KeptResolutions:
    """Resolves, and keeps the newest resolutions: a resolution depends only on the pipeline and on a few counts.

    :param definitions: all resolutions are under these.
    :param options: of all resolutions.
    """

    def __init__(self, definitions: PipelineDefinitions, options: ResolveOptions = PLAIN) -> None:
        self.definitions = definitions
        self._options = options
        self._kept: dict[_State, Resolution] = {}

    def resolve(self, requested: str, summary: BatchSummary) -> Resolution:
        """See `resolve`. Equal states get the same object.

        :raises RequestRefused: the pipeline is unknown, or an option does not allow an answer.
        """
        progress = summary.progress
        of_phases = tuple([progress.get(phase.name) for phase in self.definitions.plan(requested)])
        state = (requested, summary.known, summary.expected, of_phases)
        kept = self._kept.get(state)
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[state] = resolve(self.definitions, requested, summary, self._options)
        return kept
