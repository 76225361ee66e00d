"""Parts of HTTP requests: correlation ids, misspelt fields, traces; and the page of each problem."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from bcs.http.problems import KINDS, Kind
from bcs.http.requests import CompletePhase, DefinePipeline, InvalidBody, parse_body
from bcs.wire.tracing import trace_of

PROBLEMS = Path(__file__).parent.parent.parent / "docs" / "problems.md"
BODY: dict[str, Any] = {"batch_id": "b", "requested_pipeline": "nlp", "correlation_id": "c"}
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def raw(**changes: object) -> bytes:
    return json.dumps({**BODY, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"batch_metadata": {"promt_attached": False}},
            [("batch_metadata.promt_attached", "batch_metadata.prompt_attached")],
        ),
        (
            {"batch_metadata": {"promptAttached": False}},
            [("batch_metadata.promptAttached", "batch_metadata.prompt_attached")],
        ),
        ({"prompt_attached": False}, [("prompt_attached", "batch_metadata.prompt_attached")]),
        ({"batch_meta_data": {}, "bach_id": "x"}, [("batch_meta_data", "batch_metadata"), ("bach_id", "batch_id")]),
        ({"teacher": "x", "essays": [1], "x" * 5000: 1}, []),
        ({"batch_metadata": {"prompt_source": "context", "assignment_id": "a"}}, []),
        ({"batch_metadata": None}, []),
    ],
)
def test_an_unknown_field_near_a_known_one_is_named(changes: dict[str, object], named: list[tuple[str, str]]) -> None:
    assert parse_body(DefinePipeline, raw(**changes)).warnings == [
        f"{field} is not read; did you mean {near}?" for field, near in named
    ]


def test_a_misspelt_field_is_named_beside_the_one_that_is_missing() -> None:
    with pytest.raises(InvalidBody) as raised:
        parse_body(CompletePhase, b'{"batch_id": "b", "phase": 1, "phasename": "nlp", "succes": true}')
    assert {problem.field for problem in raised.value.problems} == {"phase_name", "success"}
    assert raised.value.warnings == [
        "phasename is not read; did you mean phase_name?",
        "succes is not read; did you mean success?",
    ]
    assert raised.value.batch_id == "b"


def test_a_correlation_id_from_elsewhere_stands_in_where_the_body_has_none() -> None:
    without = json.dumps({"batch_id": "b", "requested_pipeline": "nlp"}).encode()
    parsed = parse_body(DefinePipeline, without, "from the header")
    assert parsed.body.correlation_id == parsed.correlation_id == "from the header"
    assert json.loads(parsed.raw) == {"batch_id": "b", "requested_pipeline": "nlp", "correlation_id": "from the header"}
    assert parse_body(DefinePipeline, raw(), "from the header").body.correlation_id == "c"
    with pytest.raises(InvalidBody, match="correlation_id"):
        parse_body(DefinePipeline, without)
    report = b'{"batch_id": "b", "phase_name": "nlp", "success": true, "correlation_id": "c"}'
    assert parse_body(CompletePhase, report, "from the header").correlation_id == "c"


@pytest.mark.parametrize(
    ("headers", "passed_on"),
    [
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "a=b"}, {"traceparent": PARENT, "tracestate": "a=b"}),
        ({"traceparent": PARENT, "tracestate": "x" * 513}, {"traceparent": PARENT}),
        ({"tracestate": "a=b"}, {}),
        ({"traceparent": PARENT.upper()}, {}),
        ({"traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"}, {}),
        ({"traceparent": "ff" + PARENT[2:]}, {}),
        ({}, {}),
    ],
)
def test_a_trace_is_passed_on_where_it_is_valid(headers: dict[str, str], passed_on: dict[str, str]) -> None:
    found = trace_of(headers)
    assert (found.fields if found else {}) == passed_on


def test_every_problem_has_a_title_and_a_line_in_the_page() -> None:
    assert KINDS.keys() == set(get_args(Kind))
    assert re.findall(r"^\| `([a-z-]+)` \|", PROBLEMS.read_text(), re.MULTILINE) == sorted(KINDS)
    assert len({about.title for about in KINDS.values()}) == len(KINDS)
