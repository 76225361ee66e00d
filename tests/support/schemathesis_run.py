"""Runs schemathesis: `python -m tests.support.schemathesis_run`, see `tests/support/described_api.py`.

Reads a JSON object with `document` and `config` from its input, and writes one with what came of it. It is a process of
its own, because pytest would rewrite each module of a library that has a plugin for pytest, which takes seconds.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from http import HTTPStatus
from typing import Any

import schemathesis
from schemathesis import Response
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from bcs.http.routes.invalidation import NO_SUCH_ESSAY


class Tried:
    """What came of the requests.

    :ivar problems: what failed, once for each call and check, with the command that shows it.
    :ivar answers: how often each call was answered with each status.
    :ivar phases: how many answers each phase of schemathesis got.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.answers: Counter[tuple[str, int]] = Counter()
        self.phases: Counter[str] = Counter()

    def note(self, phase: str, scenario: ScenarioRecorder) -> None:
        """Note a scenario that has ended."""
        for case_id, interaction in scenario.interactions.items():
            if interaction.response is not None:
                self.phases[phase] += 1
                label = scenario.cases[case_id].value.operation.label
                self.answers[label, interaction.response.status_code] += 1
        for case_id, checks in scenario.checks.items():
            refused_for_essays = _is_refused_for_essays(scenario.interactions[case_id].response)
            for check in checks:
                if check.name == "positive_data_acceptance" and refused_for_essays:
                    continue  # which essays a batch has, a schema can't say
                if check.status is not Status.SUCCESS and check.failure_info:
                    failure, how = check.failure_info.failure, check.failure_info.code_sample
                    label = scenario.cases[case_id].value.operation.label
                    self.problems.setdefault(f"{label}: {check.name}: {failure.title}", f"{failure.message}\n{how}")

    def as_json(self) -> dict[str, Any]:
        """For `described_api.py`."""
        return {
            "problems": [f"{what}\n{text}" for what, text in self.problems.items()],
            "answers": [[label, status, count] for (label, status), count in sorted(self.answers.items())],
            "phases": self.phases,
        }


def _is_refused_for_essays(response: Response | None) -> bool:
    """True if the only thing wrong about a request is that its batch lacks the essays that it names."""
    if response is None or response.status_code != HTTPStatus.BAD_REQUEST:
        return False
    errors = response.json().get("errors", [])
    return bool(errors) and all(error["problem"] == NO_SUCH_ESSAY for error in errors)


def run(document: dict[str, Any], config: dict[str, Any]) -> Tried:
    """Try all calls of a document, in all phases."""
    schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(config))
    schema.validate()
    tried = Tried()
    for event in from_schema(schema).execute():
        if isinstance(event, ScenarioFinished):
            tried.note(event.phase.value, event.recorder)
        elif isinstance(event, NonFatalError):
            tried.problems[f"{event.phase}: {event.label}"] = str(event.value)
        elif isinstance(event, FatalError):
            raise event.exception
    return tried


if __name__ == "__main__":
    json.dump(run(**json.load(sys.stdin)).as_json(), sys.stdout)
