"""The examples in the description of the API are what a running service answers."""

from __future__ import annotations

import json

import pytest

from tests.support.api_examples import CALLS, FILE, play, shape


@pytest.mark.release
def test_the_service_answers_as_the_examples_say() -> None:
    kept, played = json.loads(FILE.read_text()), play()
    assert shape(played) == shape(kept), "python -m tests.support.api_examples writes them"
    for name, call in kept["calls"].items():
        assert call.get("request") == played["calls"][name].get("request")
    for kind, problem in kept["problems"].items():
        assert (problem["status"], problem["detail"]) == (
            played["problems"][kind]["status"],
            played["problems"][kind]["detail"],
        )


def test_each_call_is_an_example() -> None:
    assert {call.name for call in CALLS} | {"describeApi", "followService"} == json.loads(FILE.read_text())[
        "calls"
    ].keys()
