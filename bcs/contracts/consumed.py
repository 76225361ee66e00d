"""The consumed events as the producers write them. Unknown extra fields are accepted and ignored."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[str, Field(min_length=1, max_length=255)]
DataT = TypeVar("DataT", bound="EventData")


class EventData(BaseModel):
    """What the data of all four events has in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    timestamp: datetime | None = None


class Envelope(BaseModel, Generic[DataT]):
    """The envelope around every event.

    Only what BCS uses is checked: a repeat carries fresh ids and times, so neither is needed to apply the event, and a
    producer's slip in a field that nobody reads must not cost a batch its completion.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    # Whatever it is, nothing but the history ever shows it.
    event_id: Any = None
    event_timestamp: datetime | None = None
    correlation_id: str | None = None
    data: DataT


class EssayStatus(StrEnum):
    """How far a phase is for one essay."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class BatchStatus(StrEnum):
    """The batch statuses that end a phase; every other one changes nothing here."""

    COMPLETED_SUCCESSFULLY = "completed_successfully"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED_CRITICALLY = "failed_critically"


class SpellcheckPhaseCompletedV1(EventData):
    """One essay's spellcheck ended, or only moved on."""

    entity_id: Identifier
    batch_id: Identifier
    status: EssayStatus


class ProcessingSummary(BaseModel):
    """The lists count, not the status; an id in them can be null."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    total_essays: int | None = None
    successful: int | None = None
    failed: int | None = None
    successful_essay_ids: tuple[Identifier | None, ...]
    failed_essay_ids: tuple[Identifier | None, ...]


class CJAssessmentCompletedV1(EventData):
    """Comparative judgement of a batch ended."""

    entity_id: Identifier
    status: str
    processing_summary: ProcessingSummary


class ProcessedEssay(BaseModel):
    """An essay that came out of a phase."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    essay_id: Identifier


class ELSBatchPhaseOutcomeV1(EventData):
    """A phase ended for a batch."""

    batch_id: Identifier
    phase_name: str
    phase_status: str
    processed_essays: tuple[ProcessedEssay, ...] = ()
    failed_essay_ids: tuple[Identifier | None, ...] = ()


class BatchEssaysRegistered(EventData):
    """These essays belong to the batch."""

    entity_id: Identifier
    expected_essay_count: Annotated[int, Field(ge=0)]
    essay_ids: tuple[Identifier, ...]
