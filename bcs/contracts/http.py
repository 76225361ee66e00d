"""The HTTP bodies, as the orchestrator sends and reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from bcs.contracts.consumed import MOST_ID_CHARACTERS, Identifier
from bcs.domain.errors import BcsError
from bcs.domain.resolution import Resolution

# Between `bcs dlq replay` and the service, for a resolution that is asked again.
FAILURES_SAID = "X-BCS-Failures"
FIRST_FAILURE_SAID = "X-BCS-First-Failure"
LETTER_WRITTEN = "X-BCS-Dead-Letter"

CorrelationId = Annotated[str, Field(min_length=1, max_length=MOST_ID_CHARACTERS)]


class Body(BaseModel):
    """A request body. Unknown extra fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BatchMetadata(Body):
    """What the orchestrator knows of a batch; only the prompt matters here."""

    prompt_attached: StrictBool | None = None


class DefinePipeline(Body):
    """POST /internal/v1/pipelines/define."""

    batch_id: Identifier
    requested_pipeline: Identifier
    correlation_id: CorrelationId
    batch_metadata: BatchMetadata | None = None


class _Correlated(Body):
    correlation_id: CorrelationId


class CompletePhase(Body):
    """POST /internal/v1/phases/complete."""

    batch_id: Identifier
    phase_name: Identifier
    success: StrictBool


@dataclass(frozen=True, slots=True)
class InvalidField:
    """What is wrong with one field.

    :param field: dotted path; `body` for the document as a whole.
    """

    field: str
    problem: str


class InvalidRequest(BcsError):
    """A request that is not what the path takes.

    :param problems: each field that is wrong.
    """

    def __init__(self, problems: tuple[InvalidField, ...]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.problem}" for problem in problems))
        self.problems = problems


class InvalidBody(InvalidRequest):
    """Its body is not."""


class InvalidParameters(InvalidRequest):
    """What stands in its path or its query is not."""


def pipeline_answer(batch_id: str, resolution: Resolution) -> dict[str, Any]:
    """The body of the answer to `DefinePipeline`."""
    return {
        "batch_id": batch_id,
        "final_pipeline": resolution.to_run,
        "pruned_phases": resolution.pruned,
        "analysis_summary": resolution.explanation,
        "registered": resolution.registered,
        "essays_known": resolution.known,
        "essays_expected": resolution.expected,
        "decisions": [
            {
                "phase": decision.phase,
                "runs": decision.runs,
                "reason": decision.reason.value,
                "because": decision.because,
                "complete_when": decision.complete_when.value,
                "completed": decision.completed,
                "failed": decision.failed,
                "left_out": decision.left_out,
            }
            for decision in resolution.decisions
        ],
    }


def correlation_id_in(raw: bytes) -> str | None:
    """The correlation id in a body that is not valid as a whole, where it has one."""
    try:
        return _Correlated.model_validate_json(raw).correlation_id
    except ValidationError:
        return None


BodyT = TypeVar("BodyT", bound=Body)


def parse_body(model: type[BodyT], raw: bytes) -> BodyT:
    """A request body.

    :raises InvalidBody: naming each field, without the caller's text.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidBody(named_fields(error, "body")) from None


def named_fields(error: ValidationError, whole: str) -> tuple[InvalidField, ...]:
    """Each field that is wrong, without the caller's text.

    :param whole: names what has no field of its own.
    """
    return tuple(
        InvalidField(".".join(map(str, problem["loc"])) or whole, problem["msg"])
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
