"""The bodies of HTTP requests and responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import from_json, to_json

from bcs.config.pipelines import DraftFile
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.resolution import Decision, Resolution
from bcs.domain.resolve_options import PLAIN, Force, ResolveOptions
from bcs.domain.times import format_timestamp
from bcs.errors import BcsError, ConfigurationError
from bcs.http import answers
from bcs.http.misspelt import Fields, misspelt_fields
from bcs.wire.events import MOST_ID_CHARACTERS, Identifier

# Headers between `bcs dlq replay` and the service, for a resolution that is replayed.
FAILURES_HEADER = "X-BCS-Failures"
FIRST_FAILURE_HEADER = "X-BCS-First-Failure"
REPLAYED_FROM_HEADER = "X-BCS-Replayed-From"
DEFINITIONS_HEADER = "X-BCS-Definitions"
"""In the answer to `DefinePipeline`: the version and the hash of the definitions that decided."""

DEAD_LETTER_WRITTEN = "X-BCS-Dead-Letter"

_MOST_PARSED_BYTES = 64 * 1024
_MOST_ID_CHARACTERS = 255
_MOST_KEPT = 1_000
_BEFORE_KEPT = len('{"batch_id":""')

_MOST_NAMES = 100
PhaseNames = Annotated[tuple[Identifier, ...], Field(max_length=_MOST_NAMES, fail_fast=True)]
MOST_INVALIDATED_PHASES = 20
MOST_INVALIDATED_ESSAYS = 1_000

CorrelationId = Annotated[str, Field(min_length=1, max_length=MOST_ID_CHARACTERS)]


class Body(BaseModel):
    """A request body. Unknown extra fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fields: ClassVar[Fields] = {}
    """The fields that callers may send, including fields that BCS does not use."""


BodyT = TypeVar("BodyT", bound=Body)


class BatchMetadata(Body):
    """The orchestrator's data about a batch; BCS uses only the prompt."""

    prompt_attached: Annotated[
        StrictBool | None, Field(description="False refuses pipelines with phases that need a prompt.")
    ] = None


OPTION_FIELDS: Fields = dict.fromkeys(
    ("force", "until", "only", "exclude", "assume_completed", "assume_failed", "definitions")
)


class WithOptions(Body):
    """The options of a resolution."""

    force: Annotated[
        Literal["requested", "all"] | PhaseNames | None,
        Field(
            description="Phases that run although they are complete: those that the requested pipeline itself lists, "
            "these and all that they require, or the named ones."
        ),
    ] = None
    until: Annotated[
        Identifier | None, Field(description="Leave out all but this phase and the phases that it requires.")
    ] = None
    only: Annotated[PhaseNames | None, Field(description="Leave out all other phases.", min_length=1)] = None
    exclude: Annotated[PhaseNames | None, Field(description="Leave out these phases.")] = None
    assume_completed: Annotated[
        PhaseNames | None, Field(description="Phases that count as complete; in a define only with `dry_run`.")
    ] = None
    assume_failed: Annotated[
        PhaseNames | None, Field(description="Phases that count as failed; in a define only with `dry_run`.")
    ] = None
    definitions: Annotated[
        DraftFile | None,
        Field(
            description="Phases and pipelines to use instead of those of the service, in the format of its pipeline "
            "file; in a define only with `dry_run`."
        ),
    ] = None

    def options(self) -> ResolveOptions:
        """The options of the resolution.

        :raises InvalidBody: fields contradict each other.
        """
        completed, failed = self.assume_completed or (), self.assume_failed or ()
        if set(completed) & set(failed):
            raise InvalidBody((InvalidField("assume_failed", "it must not name a phase of assume_completed"),))
        options = ResolveOptions(
            force=Force(self.force) if isinstance(self.force, str) else self.force or (),
            until=self.until,
            only=self.only or (),
            exclude=self.exclude or (),
            assume_completed=completed,
            assume_failed=failed,
        )
        return options if options != PLAIN else PLAIN

    def draft(self) -> PipelineDefinitions | None:
        """The definitions in the request; None if it has none.

        :raises InvalidBody: they contradict themselves.
        """
        try:
            return None if self.definitions is None else self.definitions.definitions()
        except ConfigurationError as error:
            # The text names phases and pipelines, which are short words of letters, digits and underscores.
            raise InvalidBody((InvalidField("definitions", str(error)),)) from None


class DefinePipeline(WithOptions):
    """A question: which phases of a pipeline does a batch still need?"""

    fields: ClassVar[Fields] = {
        "batch_id": None,
        "requested_pipeline": None,
        "correlation_id": None,
        "batch_metadata": {"prompt_attached": None, "prompt_source": None, "assignment_id": None},
        "dry_run": None,
        "explain": None,
        **OPTION_FIELDS,
    }
    batch_id: Identifier
    requested_pipeline: Annotated[Identifier, Field(description="A phase or a pipeline of the configuration.")]
    correlation_id: Annotated[
        CorrelationId, Field(description="Without it, the header `X-Correlation-ID` must have the correlation id.")
    ]
    batch_metadata: BatchMetadata | None = None
    dry_run: Annotated[
        StrictBool | None,
        Field(description="Answer without any effect: nothing is announced, and the history gets no entry."),
    ] = None
    explain: Annotated[
        StrictBool | Literal["full"] | None,
        Field(description="Explain each phase in `explanation`; `full` also lists the first page of all essays."),
    ] = None

    @property
    def plain(self) -> bool:
        """True if the request has no field that asks for more than the plain answer."""
        return (
            self.dry_run is None
            and self.explain is None
            and self.force is None
            and self.until is None
            and self.only is None
            and self.exclude is None
            and self.assume_completed is None
            and self.assume_failed is None
            and self.definitions is None
        )

    def options(self) -> ResolveOptions:
        """See `WithOptions.options`.

        :raises InvalidBody: fields contradict each other.
        """
        problems = [
            InvalidField(name, "it is allowed only with dry_run: true")
            for name in _WITHOUT_EFFECT
            if getattr(self, name) is not None and not self.dry_run
        ]
        if problems:
            raise InvalidBody(tuple(problems))
        return super().options()


_WITHOUT_EFFECT = ("assume_completed", "assume_failed", "definitions")


class CompletePhase(Body):
    """A report on a whole phase of a batch."""

    fields: ClassVar[Fields] = {"batch_id": None, "phase_name": None, "success": None, "correlation_id": None}
    batch_id: Identifier
    phase_name: Annotated[Identifier, Field(description="A phase of the platform or of the configuration.")]
    success: StrictBool


class InvalidatedPhases(Body):
    """An operator's order to take completions of a batch back."""

    fields: ClassVar[Fields] = {"phases": None, "essays": None, "reason": None, "dry_run": None, "correlation_id": None}
    phases: Annotated[
        tuple[Identifier, ...],
        Field(
            min_length=1,
            max_length=MOST_INVALIDATED_PHASES,
            fail_fast=True,
            description="Phases of the platform or of the configuration.",
        ),
    ]
    essays: Annotated[
        Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MOST_INVALIDATED_ESSAYS, fail_fast=True)]
        | None,
        Field(description="Only these essays of the batch. Null or left out: all of them."),
    ] = None
    reason: Annotated[
        str, Field(min_length=1, max_length=500, pattern=r"\S", description="The reason, for the history.")
    ]
    dry_run: Annotated[StrictBool, Field(description="True shows what would be taken back, and changes nothing.")] = (
        False
    )


@dataclass(frozen=True, slots=True)
class InvalidField:
    """A field of a request, and the problem with this field.

    :param field: dotted path; `body` for the document as a whole.
    """

    field: str
    problem: str


class InvalidRequest(BcsError):
    """The request is invalid.

    :param problems: one for each invalid field.
    """

    def __init__(self, problems: tuple[InvalidField, ...]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.problem}" for problem in problems))
        self.problems = problems


class InvalidBody(InvalidRequest):
    """The request body is invalid.

    :ivar warnings: about unknown fields whose names are similar to the name of a known field.
    :ivar correlation_id: the body's correlation id; None if the body has none.
    :ivar batch_id: the body's batch id; None if the body has none.
    """

    warnings: Sequence[str] = ()
    correlation_id: str | None = None
    batch_id: str | None = None


class InvalidParameters(InvalidRequest):
    """The path or the query of the request is invalid."""


def pipeline_answer(batch_id: str, resolution: Resolution) -> answers.Resolution:
    """The body of the response to `DefinePipeline`."""
    return {
        "batch_id": batch_id,
        "final_pipeline": resolution.to_run,
        "pruned_phases": resolution.pruned,
        "analysis_summary": resolution.explanation,
        "registered": resolution.registered,
        "essays_known": resolution.known,
        "essays_expected": resolution.expected,
        "decisions": [_decision(decision) for decision in resolution.decisions],
    }


def _decision(decision: Decision) -> answers.Decision:
    document: answers.Decision = {
        "phase": decision.phase,
        "runs": decision.runs,
        "reason": decision.reason,
        "reason_text": decision.reason_text,
        "complete_when": decision.complete_when,
        "completed": decision.completed,
        "failed": decision.failed,
        "left_out": decision.left_out,
    }
    if decision.changed is not None:
        document["definition_changed"] = {
            "before": decision.changed.before,
            "after": decision.changed.after,
            "completed_at": format_timestamp(decision.changed.at_us),
            "completed_since": decision.changed.completed_since,
        }
    return document


class PipelineAnswers:
    """Encodes responses to `DefinePipeline`, and keeps the part that depends only on the resolution.

    `KeptResolutions` returns the same object for equal states, so the part is found by identity.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Resolution, bytes]] = {}

    def encode(self, batch_id: str, resolution: Resolution, source: str, warnings: Sequence[str]) -> bytes:
        """The body as JSON.

        :param source: the name of the store that answered.
        :param warnings: about unknown fields of the request.
        """
        kept = self._kept.get(id(resolution))
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            # The reference to the resolution keeps its identity from being used again.
            kept = self._kept[id(resolution)] = resolution, to_json(pipeline_answer("", resolution))[_BEFORE_KEPT:-1]
        added = {"source": source, "warnings": warnings} if warnings else {"source": source}
        return b'{"batch_id":%b%b,%b' % (to_json(batch_id), kept[1], to_json(added)[1:])


@dataclass(frozen=True, slots=True)
class ParsedBody(Generic[BodyT]):
    """A request body that is valid.

    :param raw: the body, with the correlation id that BCS uses.
    :param correlation_id: from the body, or else from the header; None if neither has one.
    :param warnings: about unknown fields whose names are similar to the name of a known field.
    """

    body: BodyT
    raw: bytes
    correlation_id: str | None
    warnings: list[str]


def parse_body(model: type[BodyT], raw: bytes, correlation_id: str | None = None) -> ParsedBody[BodyT]:
    """Parse a request body.

    :param correlation_id: used if the body has none.
    :raises InvalidBody: the body is invalid. The error names each field, and does not repeat the text of the caller.
    """
    # A large body is not parsed here, because parsing could create very many Python objects.
    document = _fields_of(raw) if len(raw) <= _MOST_PARSED_BYTES else {}
    warnings = misspelt_fields(document, model.fields)
    given = _as_correlation_id(document.get("correlation_id"))
    if document and document.get("correlation_id") is None and correlation_id is not None:
        given = correlation_id
        raw = to_json({**document, "correlation_id": correlation_id})
    try:
        return ParsedBody(model.model_validate_json(raw), raw, given, warnings)
    except ValidationError as error:
        invalid = InvalidBody(named_fields(error, "body"))
        invalid.warnings, invalid.correlation_id, invalid.batch_id = warnings, given, _as_id(document.get("batch_id"))
        raise invalid from None


def _fields_of(raw: bytes) -> dict[str, Any]:
    try:
        document = from_json(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _as_correlation_id(value: object) -> str | None:
    return value if isinstance(value, str) and 1 <= len(value) <= MOST_ID_CHARACTERS else None


def _as_id(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _MOST_ID_CHARACTERS else None


def named_fields(error: ValidationError, whole: str) -> tuple[InvalidField, ...]:
    """The invalid fields, without the text of the caller.

    :param whole: the name for a problem that belongs to no single field.
    """
    return tuple(
        InvalidField(".".join(map(str, problem["loc"])) or whole, problem["msg"])
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
