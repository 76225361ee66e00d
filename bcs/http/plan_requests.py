"""The body of a request for a plan: the batches by their ids, or by what they are like."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

from bcs.domain.pipelines import PipelineDefinitions
from bcs.http.found_batches import criteria_of, cursor_in
from bcs.http.misspelt import Fields
from bcs.http.parameters import MOST_SECONDS, USUAL_STALE_SECONDS, WantedBatches
from bcs.http.requests import OPTION_FIELDS, InvalidBody, InvalidField, InvalidParameters, WithOptions
from bcs.usecases.plan_pipelines import Selection
from bcs.wire.events import Identifier

MOST_PLANNED = 1_000
"""How many batches a plan has at most."""

_BATCHES = ("batch_ids", "selection")


def _as_integer(value: object) -> object:
    # JSON Schema takes 5.0 for an integer, and neither "5" nor true. pydantic takes both, or none of the three.
    if isinstance(value, str | bool):
        raise ValueError("must be an integer")  # noqa: TRY004 (pydantic reports a ValueError)
    return value


_INTEGER = BeforeValidator(_as_integer)


class SelectedBatches(WantedBatches):
    """The batches that the caller wants planned, as in the query that finds batches."""

    limit: Annotated[
        int, Field(ge=1, le=MOST_PLANNED, description="How many batches the plan has at most."), _INTEGER
    ] = MOST_PLANNED
    stale_seconds: Annotated[
        int,
        Field(ge=1, le=MOST_SECONDS, description="An incomplete batch is stale after so long without a change."),
        _INTEGER,
    ] = USUAL_STALE_SECONDS
    cursor: Annotated[
        str | None, Field(min_length=1, description="From the `next_cursor` of the plan before, to go on after it.")
    ] = None


def _either(schema: dict[str, Any]) -> None:
    """Describe what `PlanPipelines.batches` checks: one of two fields is there, and none of them is null."""
    for name in _BATCHES:
        described = schema["properties"][name]
        [given] = [one for one in described.pop("anyOf") if one.get("type") != "null"]
        del described["default"]
        described |= given
    # Not `oneOf`: generators of clients take it for a choice between types, and lose all fields.
    one, other = ({"required": [name]} for name in _BATCHES)
    schema |= {"if": one, "then": {"not": other}, "else": other}


class PlanPipelines(WithOptions):
    """A question about many batches: which phases of a pipeline does each still need?

    Either `batch_ids` or `selection` says which batches.
    """

    model_config = ConfigDict(json_schema_extra=_either)

    fields: ClassVar[Fields] = {
        "batch_ids": None,
        "selection": dict.fromkeys(SelectedBatches.model_fields),
        "requested_pipeline": None,
        "correlation_id": None,
        **OPTION_FIELDS,
    }
    batch_ids: Annotated[
        Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MOST_PLANNED, fail_fast=True)] | None,
        Field(description="The ids of the batches."),
    ] = None
    selection: Annotated[
        SelectedBatches | None, Field(description="What the batches are like, instead of their ids.")
    ] = None
    requested_pipeline: Annotated[Identifier, Field(description="A phase or a pipeline of the configuration.")]

    def batches(self, definitions: PipelineDefinitions, now_us: int) -> tuple[str, ...] | Selection:
        """The batches to plan.

        :param definitions: those of the service.
        :param now_us: wall-clock time in microseconds since 1970 UTC.
        :raises InvalidBody: the fields contradict each other.
        :raises UnknownPipeline: nothing is defined under the pipeline's name in the selection.
        """
        if len(self.model_fields_set.intersection(_BATCHES)) != 1 or (self.batch_ids is None) == (
            self.selection is None
        ):
            raise InvalidBody((InvalidField("body", "it must have either batch_ids or selection"),))
        if self.selection is None:
            return self.batch_ids or ()
        try:
            return Selection(
                criteria=criteria_of(self.selection, definitions, now_us),
                limit=self.selection.limit,
                cursor=cursor_in(self.selection),
            )
        except InvalidParameters as error:
            problems = [InvalidField(f"selection.{problem.field}", problem.problem) for problem in error.problems]
            raise InvalidBody(tuple(problems)) from None
