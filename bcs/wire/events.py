"""The consumed events as the producers write them. Unknown extra fields are accepted and ignored."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other

# Not blank, and no blanks at either end: two ids that look the same must not be two batches. The pattern means the same
# in JSON Schema, which the description of the API uses: there, U+0085 is no blank, and U+FEFF is one.
_SHOWN = r"(?:[^\s\x85]|\uFEFF)"
Identifier = Annotated[str, Field(min_length=1, max_length=255, pattern=rf"^{_SHOWN}(?:[\s\S]*{_SHOWN})?$")]
MOST_ID_CHARACTERS = 100
"""The longest correlation id and event id that are stored; both are UUIDs in practice."""

DataT = TypeVar("DataT", bound="EventData")


NO_TIME: Final = datetime.min.replace(tzinfo=UTC)
"""The value for an invalid time. No valid event has it, because it lies before 1970."""


def _or_else(default: object) -> GetPydanticSchema:
    """Replace an invalid value by a default; unlike `Any`, this creates no Python objects for the invalid value.

    The JSON Schema says that any value is accepted.
    """
    return GetPydanticSchema(
        lambda source, handler: core_schema.with_default_schema(handler(source), default=default, on_error="default"),
        lambda _schema, _handler: {},
    )


OptionalText = Annotated[str | None, _or_else(None)]
"""A text; None where the value is not a text."""

_TIME: Final = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^(19[7-9][0-9]|[2-9][0-9]{3})-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]+)?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})$",
}
# pydantic reads other ways to write a time, too. The schema promises the one that the platform uses.
Time = Annotated[datetime, WithJsonSchema(_TIME)]

# An error for each of 475,000 ids would take seconds and hundreds of megabytes, so validation of a list ends at its
# first error.
EssayIds = Annotated[tuple[Identifier, ...], Field(fail_fast=True)]
NullableEssayIds = Annotated[tuple[Identifier | None, ...], Field(fail_fast=True)]


class EventData(BaseModel):
    """The common part of the data of all four events."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    timestamp: Annotated[Time | None, Field(description="The time that orders facts about the same thing.")] = None

    @property
    def essays(self) -> int:
        """How many essays the event has: the entries of its lists, repeats and nulls included, or a larger count."""
        return 0


def _describe_envelope(schema: dict[str, Any]) -> None:
    """Add to the JSON Schema the fields that BCS does not read, and when the time of the envelope has to be valid."""
    schema["properties"] |= {
        "event_type": {"description": "Normally the topic's name, in older events the model's. BCS goes by the topic."},
        "source_service": {"description": "Not read."},
        "schema_version": {"description": "1. Not read."},
        "data_schema_uri": {"description": "Not read."},
        "metadata": {"description": "May have `traceparent`, `tracestate` and `partition_key`."},
    }
    has_time = {"properties": {"data": {"required": ["timestamp"], "properties": {"timestamp": {"type": "string"}}}}}
    schema["if"] = has_time
    schema["else"] = {"properties": {"event_timestamp": {"anyOf": [_TIME, {"type": "null"}]}}}


class Envelope(BaseModel, Generic[DataT]):
    """The envelope around every event.

    Only the fields that BCS uses are validated: a producer's mistake in another field must not keep a batch from being
    complete. Ids and times are optional: a repeated event has new ones, and BCS can apply an event without them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", cache_strings="keys", json_schema_extra=_describe_envelope)

    # Only the history shows this id. Like the correlation id, it may have any length.
    event_id: Annotated[
        OptionalText, Field(description="A UUID, another one at each attempt to publish. Anything but text is ignored.")
    ] = None
    event_timestamp: Annotated[
        datetime | None,
        _or_else(NO_TIME),
        Field(description="A time in RFC 3339; used only where the data has none, and must be valid there."),
    ] = None
    correlation_id: Annotated[OptionalText, Field(description="A UUID. Anything but text is ignored.")] = None
    data: DataT

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name of the schema."""
        return f"{params[0].__name__}Envelope"


class PartialEvent(BaseModel, Generic[DataT]):
    """The ids of an event that is not valid as a whole."""

    correlation_id: OptionalText = None
    data: Annotated[DataT | None, _or_else(None)] = None


class NamesBatchId(BaseModel):
    """Data that may name its batch in `batch_id`."""

    batch_id: Annotated[Identifier | None, _or_else(None)] = None


class NamesEntityId(BaseModel):
    """Data that may name its batch in `entity_id`."""

    entity_id: Annotated[Identifier | None, _or_else(None)] = None


class EssayStatus(StrEnum):
    """How far a phase is for one essay."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class BatchStatus(StrEnum):
    """The platform's statuses of a batch, and of a phase of it."""

    AWAITING_CONTENT_VALIDATION = "awaiting_content_validation"
    CONTENT_INGESTION_FAILED = "content_ingestion_failed"
    AWAITING_PIPELINE_CONFIGURATION = "awaiting_pipeline_configuration"
    READY_FOR_PIPELINE_EXECUTION = "ready_for_pipeline_execution"
    PROCESSING_PIPELINES = "processing_pipelines"
    AWAITING_STUDENT_VALIDATION = "awaiting_student_validation"
    STUDENT_VALIDATION_COMPLETED = "student_validation_completed"
    VALIDATION_TIMEOUT_PROCESSED = "validation_timeout_processed"
    COMPLETED_SUCCESSFULLY = "completed_successfully"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED_CRITICALLY = "failed_critically"
    CANCELLED = "cancelled"


class CJEssayStatus(StrEnum):
    """The statuses of an essay, which an event of comparative judgement may carry instead of a batch's status."""

    AWAITING = "awaiting_cj_assessment"
    IN_PROGRESS = "cj_assessment_in_progress"
    PROCESSING_IN_PROGRESS = "cj_assessment_processing_in_progress"
    SUCCESS = "cj_assessment_success"
    FAILED = "cj_assessment_failed"
    ALL_COMPLETED = "all_processing_completed"
    CRITICAL_FAILURE = "essay_critical_failure"


PHASE_ENDED = frozenset(
    {BatchStatus.COMPLETED_SUCCESSFULLY, BatchStatus.COMPLETED_WITH_FAILURES, BatchStatus.FAILED_CRITICALLY}
)
"""The statuses with which a phase has ended for a batch."""

CJ_ENDED = PHASE_ENDED | {
    CJEssayStatus.SUCCESS,
    CJEssayStatus.FAILED,
    CJEssayStatus.ALL_COMPLETED,
    CJEssayStatus.CRITICAL_FAILURE,
}
"""The statuses with which a comparative judgement has ended."""


class SpellcheckPhaseCompletedV1(EventData):
    """One essay's spellcheck ended, or made progress."""

    entity_id: Identifier
    batch_id: Identifier
    status: EssayStatus


class ProcessingSummary(BaseModel):
    """The lists of essays. An id can be null, and an absent list names no essay."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    successful_essay_ids: NullableEssayIds | None = None
    failed_essay_ids: NullableEssayIds | None = None


class CJAssessmentCompletedV1(EventData):
    """Comparative judgement of a batch ended."""

    entity_id: Identifier
    status: BatchStatus | CJEssayStatus
    processing_summary: ProcessingSummary

    @property
    def essays(self) -> int:
        """See `EventData.essays`."""
        summary = self.processing_summary
        return len(summary.successful_essay_ids or ()) + len(summary.failed_essay_ids or ())


class ProcessedEssay(TypedDict):
    """An essay that completed a phase. Not a pydantic model, because one event has thousands of these."""

    essay_id: Identifier


class ELSBatchPhaseOutcomeV1(EventData):
    """A phase ended for a batch."""

    batch_id: Identifier
    phase_name: str
    phase_status: BatchStatus
    correlation_id: OptionalText = None
    processed_essays: Annotated[tuple[ProcessedEssay, ...], Field(fail_fast=True)] = ()
    failed_essay_ids: NullableEssayIds = ()

    @property
    def essays(self) -> int:
        """See `EventData.essays`."""
        return len(self.processed_essays) + len(self.failed_essay_ids)


class BatchEssaysRegistered(EventData):
    """These essays belong to the batch."""

    entity_id: Identifier
    # Strict, because `true` must not count as 1.
    expected_essay_count: Annotated[int, Field(ge=0, strict=True)]
    essay_ids: EssayIds

    @property
    def essays(self) -> int:
        """See `EventData.essays`."""
        return max(len(self.essay_ids), self.expected_essay_count)
