"""Tries the whole HTTP API by its description: schemathesis makes requests from it, and checks the answers with it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcs.http.found_batches import encode_cursor
from bcs.http.openapi import BEARER, CERTIFICATE
from bcs.storage.batch_index import Place
from bcs.usecases.find_batches import Cursor
from bcs.wire import topics
from tests.support.tiers import IN_FULL

_PROGRAM = "tests.support.schemathesis_run"
# The bodies of requests: callers may send fields that BCS does not read.
_BODIES = frozenset(
    {
        *("DefinePipeline", "BatchMetadata", "CompletePhase", "InvalidatedPhases", "PlanPipelines"),
        *("ReplayedDeadLetters", "SelectedBatches"),
    }
)
# What a valid request may be answered, besides 503: the batch or the pipeline is unknown, the batch was
# erased, or the report can't count.
_OF_VALID = ["2xx", "404", "409", "410", "503"]
# What an invalid request is answered. An invalid name in a path is the name of nothing; a long query makes a long head.
_OF_INVALID = ["400", "404", "413", "415", "431", "503"]
_CHECKS = {
    "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
    "positive_data_acceptance": {"expected-statuses": _OF_VALID},
    "negative_data_rejection": {"expected-statuses": _OF_INVALID},
}

# The options contradict each other where they name other phases; each shipped pipeline has this one.
_SOME_PHASES = {"anyOf": [{"type": "array", "items": {"enum": ["spellcheck"]}, "maxItems": 100}, {"type": "null"}]}
_OPTIONS = {
    "force": {"enum": ["requested", "all", None]},
    "until": {"enum": ["spellcheck", None]},
    "only": {"enum": [["spellcheck"], None]},
    "exclude": _SOME_PHASES,
}
_ONLY_WITH_DRY_RUN = ("assume_completed", "assume_failed", "definitions")
_OPTIONS_OF_PLAN = {
    "requested_pipeline": {"enum": ["nlp", "comprehensive"]},
    "assume_completed": _SOME_PHASES,
    "assume_failed": {"enum": [["nlp"], None]},
    "definitions": {"type": "null"},
}


# Each of these asks Kafka, which takes a second.
_SLOW = () if IN_FULL else ("/internal/v1/dead-letters", "/internal/v1/dead-letters/replay")
UNTRIED = frozenset({"/internal/v1/ui/events", *_SLOW})
"""The paths that are not tried: a stream has no end, and tests/integration/test_ui.py reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that a service knows, which its description does not have.

    :param phases: the phases that may be reported.
    :param pipelines: the pipelines that may be asked for.
    :param actors: the actors that are killed, and names of none.
    :param batches: ids of batches of which something is known.
    :param essays: the essays of these batches.
    """

    phases: Sequence[str]
    pipelines: Sequence[str]
    actors: Sequence[str]
    batches: Sequence[str]
    essays: Sequence[str]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of it.

    :param problems: what failed, and what could not be tried.
    :param answers: each call, each status that it was answered with, and how often.
    :param phases: the phases of schemathesis, and how many answers each got.
    """

    problems: list[str]
    answers: list[tuple[str, int, int]]
    phases: dict[str, int]


def narrowed(document: dict[str, Any], names: Names, *, token: bool) -> dict[str, Any]:
    """The description for one service: with its names, and with no member of an answer that the types do not have.

    :param token: true if the service asks for tokens.
    """
    document = copy.deepcopy(document)
    for path in UNTRIED:
        del document["paths"][path]
    schemas, paths = document["components"]["schemas"], document["paths"]
    for name, schema in schemas.items():
        # Callers may send fields that BCS does not read.
        if "properties" in schema and name not in _BODIES:
            schema["additionalProperties"] = False
    schemas["CompletePhase"]["properties"]["phase_name"] = {"enum": [*names.phases]}
    replayed = schemas["ReplayedDeadLetters"]["properties"]["dead_letters"]
    replayed["items"] = {"enum": [f"{topic}/0/999999" for topic in topics.DEAD_LETTERS]}
    invalidated = schemas["InvalidatedPhases"]["properties"]
    invalidated["phases"]["items"] = {"enum": [*names.phases]}
    [essays] = [one for one in invalidated["essays"]["anyOf"] if "items" in one]
    essays["items"] = {"enum": [*names.essays]}
    schemas["DefinePipeline"]["properties"]["requested_pipeline"] = {"enum": [*names.pipelines]}
    schemas["DefinePipeline"]["properties"] |= _OPTIONS | {name: {"type": "null"} for name in _ONLY_WITH_DRY_RUN}
    schemas["PlanPipelines"]["properties"] |= _OPTIONS | _OPTIONS_OF_PLAN
    for path, of_path in (
        ("/internal/v1/actors/{name}/kill", names.actors),
        ("/internal/v1/pipelines/{name}/graph", names.pipelines),
        ("/internal/v1/batches/{id}/explain/{pipeline}", names.pipelines),
    ):
        for operation in paths[path].values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path" and parameter["name"] != "id":
                    parameter["schema"] = {"enum": [*of_path]}
    cursor = {"enum": [encode_cursor(Cursor("back", Place(1, "batch"), 1))]}
    selected = schemas["SelectedBatches"]["properties"]
    del selected["pipeline"]
    selected |= {"phase": {"enum": [*names.phases, None]}, "cursor": cursor}
    find = paths["/internal/v1/batches"]["get"]
    # Not together with `phase`, which a schema can't say.
    find["parameters"] = [one for one in find["parameters"] if one["name"] != "pipeline"]
    for parameter in find["parameters"]:
        if parameter["name"] == "phase":
            parameter["schema"] = {"enum": [*names.phases]}
        elif parameter["name"] == "cursor":
            parameter["schema"] = cursor
    for operation in _operations(document):
        if "security" in operation:
            operation["security"] = [{BEARER: operation["security"][-1][CERTIFICATE]}] if token else []
    if not token:
        del document["components"]["securitySchemes"][BEARER]
    return document


def try_all(base: str, document: dict[str, Any], names: Names, budget: Budget, *, token: str | None = None) -> Tried:
    """Try all calls, in all phases of schemathesis.

    :param base: where the service listens.
    :param token: a token with all scopes, if the service asks for tokens: then also what comes without one is tried.
    """
    known = {"dictionary": "batches", "probability": 0.2}
    config = {
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
    job = json.dumps({"document": narrowed(document, names, token=token is not None), "config": config})
    ran = subprocess.run(
        [sys.executable, "-m", _PROGRAM],
        input=job,
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    tried = json.loads(ran.stdout)
    answers = [(label, status, count) for label, status, count in tried["answers"]]
    return Tried(problems=tried["problems"], answers=answers, phases=tried["phases"])


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()
