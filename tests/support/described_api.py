"""Tries the whole HTTP API by its description: schemathesis makes requests from it, and checks the answers with it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from bcs.http.openapi import BEARER

# What a valid request may be answered, besides 503: the batch or the pipeline is unknown, or the report can't count.
_OF_VALID = ["2xx", "404", "409", "503"]
# What an invalid request is answered. An invalid name in a path is the name of nothing.
_OF_INVALID = ["400", "404", "413", "415", "503"]
_CHECKS = {
    "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
    "positive_data_acceptance": {"expected-statuses": _OF_VALID},
    "negative_data_rejection": {"expected-statuses": _OF_INVALID},
    # The schemas of requests do not know of what the ids in them are.
    "use_after_free": {"enabled": False},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that a service knows, which its description does not have.

    :param phases: the phases that may be reported.
    :param pipelines: the pipelines that may be asked for.
    :param actors: the actors that are killed, and names of none.
    :param batches: ids of batches of which something is known.
    """

    phases: Sequence[str]
    pipelines: Sequence[str]
    actors: Sequence[str]
    batches: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is tried.

    :param examples: how many requests are made at random for each call.
    :param stories: how many sequences of calls are made.
    :param seed: of the random numbers; None for the same requests in each run.
    """

    examples: int
    stories: int
    seed: int | None = None


@dataclass(slots=True)
class Tried:
    """What came of it.

    :ivar failures: one for each call and check, with the command that shows it.
    :ivar errors: what kept a call from being tried.
    :ivar answers: how often each call was answered with each status.
    :ivar phases: how many answers each phase of schemathesis got.
    """

    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> list[str]:
        """All of it in words."""
        return [f"{' '.join(key)}:\n{text}" for key, text in self.failures.items()] + self.errors


def narrowed(document: dict[str, Any], names: Names, *, token: bool) -> dict[str, Any]:
    """The description for this service: with its names, and with no member of an answer that the types do not have.

    :param token: true if the service asks for tokens.
    """
    document = copy.deepcopy(document)
    schemas, paths = document["components"]["schemas"], document["paths"]
    for schema in schemas.values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    # Callers may send fields that BCS does not read.
    for body in ("DefinePipeline", "BatchMetadata", "CompletePhase"):
        del schemas[body]["additionalProperties"]
    schemas["CompletePhase"]["properties"]["phase_name"] = {"enum": [*names.phases]}
    schemas["DefinePipeline"]["properties"]["requested_pipeline"] = {"enum": [*names.pipelines]}
    [name] = [one for one in paths["/internal/v1/actors/{name}/kill"]["post"]["parameters"] if one["name"] == "name"]
    name["schema"] = {"enum": [*names.actors]}
    for operation in _operations(document):
        if "security" in operation:
            operation["security"] = [need for need in operation["security"] if need] if token else []
    if not token:
        del document["components"]["securitySchemes"][BEARER]
    return document


def try_all(base: str, document: dict[str, Any], names: Names, budget: Budget, *, token: str | None = None) -> Tried:
    """Try all calls, in all phases of schemathesis.

    :param base: where the service listens.
    :param token: the caller's token, with all scopes, if the service asks for tokens.
    """
    known = {"dictionary": "batches", "probability": 0.5}
    config = schemathesis.Config.from_dict(
        {
            "base-url": base,
            **({} if budget.seed is None else {"seed": budget.seed}),
            "headers": {} if token is None else {"Authorization": f"Bearer {token}"},
            "continue-on-failure": True,
            "request-timeout": 15,
            "dictionaries": {"batches": {"values": [*names.batches]}},
            "parameters": {"path.id": known, "body.batch_id": known},
            "generation": {
                "deterministic": budget.seed is None,
                "database": "none",
                "no-shrink": True,
                "max-examples": budget.examples,
            },
            "phases": {"stateful": {"generation": {"max-examples": budget.stories}}},
            "checks": _CHECKS,
            "cache": {"enabled": False},
            "analysis": {"constants": {"enabled": False}},
            "output": {"sanitization": {"enabled": False}},
        }
    )
    schema = schemathesis.openapi.from_dict(narrowed(document, names, token=token is not None), config=config)
    tried = Tried()
    for event in from_schema(schema).execute():
        if isinstance(event, ScenarioFinished):
            _note(tried, event.phase.value, event.recorder)
        elif isinstance(event, NonFatalError):
            tried.errors.append(f"{event.phase} {event.label}: {event.info.format()}")
        elif isinstance(event, FatalError):
            raise event.exception
    return tried


def _note(tried: Tried, phase: str, scenario: ScenarioRecorder) -> None:
    for case_id, interaction in scenario.interactions.items():
        if interaction.response is not None:
            tried.phases[phase] += 1
            tried.answers[scenario.cases[case_id].value.operation.label, interaction.response.status_code] += 1
    for case_id, checks in scenario.checks.items():
        label = scenario.cases[case_id].value.operation.label
        for check in checks:
            if check.status is not Status.SUCCESS and check.failure_info:
                failure = check.failure_info.failure
                text = f"{failure.message}\n{check.failure_info.code_sample}"
                tried.failures.setdefault((label, check.name, failure.title), text)


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()
