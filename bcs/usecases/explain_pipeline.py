"""Explains a resolution: reads the whole batch, decides, and says for each phase what decided. It has no effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import anyio

from bcs.domain.explained import DecidingFact, ExplainedPhase
from bcs.domain.explanation import explaining_phase
from bcs.domain.history import ArchivedEntry
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import Evaluation, summarizing
from bcs.domain.resolution import Resolution, resolve
from bcs.domain.resolve_options import ResolveOptions
from bcs.domain.state import BatchState
from bcs.errors import StoreError
from bcs.kafka.lag_age import IntakeLag
from bcs.storage.pace import paced
from bcs.storage.postgres.fact_finder import find_entries
from bcs.storage.postgres.history_reader import HistoryReader
from bcs.usecases.batch_reader import SnapshotReader


class ArchiveAnswer(StrEnum):
    """Whether the archive was asked for the events behind the facts."""

    ANSWERED = "answered"
    UNAVAILABLE = "unavailable"
    NOT_CONFIGURED = "not_configured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A resolution with everything that implies it.

    :param version: the version of the state; None if the source has no versions.
    :param source: the name of the store that answered.
    :param phases: in the order of the pipeline.
    :param evaluation: of the state, under the law of the definitions that decided.
    :param entries: where the archive recorded the deciding facts.
    :param archive: whether the archive answered.
    :param lag: how far the intake was behind.
    """

    resolution: Resolution
    state: BatchState
    version: int | None
    source: str
    require_registration: bool
    phases: Sequence[ExplainedPhase]
    evaluation: Evaluation
    entries: Mapping[DecidingFact, ArchivedEntry]
    archive: ArchiveAnswer
    lag: IntakeLag


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineExplainer:
    """Resolves from a snapshot of the batch, and explains.

    :param archive: reads the history; None without an archive.
    :param lag: measures how far the intake is behind.
    :param reading: limits the number of batches that are in memory at the same time.
    :param history_seconds: how long the history may be searched for deciding facts.
    """

    reader: SnapshotReader
    archive: HistoryReader | None
    require_registration: bool
    lag: Callable[[], IntakeLag]
    reading: anyio.Semaphore
    history_seconds: float

    async def resolve(
        self, definitions: PipelineDefinitions, batch_id: str, pipeline: str, options: ResolveOptions
    ) -> Explanation:
        """Resolve from a snapshot, without an explanation of each phase.

        :raises RequestRefused: the pipeline, or an option, does not allow an answer.
        :raises StoreError: no answer, and never a guess.
        """
        async with self.reading:
            return await self._resolve(definitions, batch_id, pipeline, options)

    async def explain(
        self, definitions: PipelineDefinitions, batch_id: str, pipeline: str, options: ResolveOptions
    ) -> Explanation:
        """Resolve from a snapshot, and explain each phase.

        :param definitions: those of the service, or a draft.
        :raises RequestRefused: the pipeline, or an option, does not allow an answer.
        :raises StoreError: no answer, and never a guess.
        """
        async with self.reading:
            resolved = await self._resolve(definitions, batch_id, pipeline, options)
            phases = [
                await paced(explaining_phase(resolved.evaluation, resolved.state, phase, decision))
                for phase, decision in zip(definitions.plan(pipeline), resolved.resolution.decisions, strict=True)
            ]
            entries, answer = await self._entries(batch_id, phases)
        return Explanation(
            resolution=resolved.resolution,
            state=resolved.state,
            version=resolved.version,
            source=resolved.source,
            require_registration=self.require_registration,
            phases=phases,
            evaluation=resolved.evaluation,
            entries=entries,
            archive=answer,
            lag=resolved.lag,
        )

    async def _resolve(
        self, definitions: PipelineDefinitions, batch_id: str, pipeline: str, options: ResolveOptions
    ) -> Explanation:
        # Before the batch is read: the answer has at least what was read from Kafka by then.
        lag = self.lag()
        law = definitions.law(require_registration=self.require_registration)
        state, version, source = await self.reader.snapshot(batch_id)
        summary = await paced(summarizing(state, law, version or 0))
        return Explanation(
            resolution=resolve(definitions, pipeline, summary, options),
            state=state,
            version=version,
            source=source,
            require_registration=self.require_registration,
            phases=(),
            evaluation=Evaluation(state, law),
            entries={},
            archive=ArchiveAnswer.NOT_CONFIGURED,
            lag=lag,
        )

    async def _entries(
        self, batch_id: str, phases: Sequence[ExplainedPhase]
    ) -> tuple[Mapping[DecidingFact, ArchivedEntry], ArchiveAnswer]:
        if self.archive is None:
            return {}, ArchiveAnswer.NOT_CONFIGURED
        facts = {phase.decided_by for phase in phases if phase.decided_by is not None}
        try:
            found = await find_entries(self.archive, batch_id, facts, seconds=self.history_seconds)
        except StoreError:
            # The state alone explains the decision; only the events behind it are not named.
            return {}, ArchiveAnswer.UNAVAILABLE
        return found, ArchiveAnswer.ANSWERED
