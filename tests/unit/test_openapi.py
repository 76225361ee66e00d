"""The description of the HTTP API says what the code and the pages say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from bcs.http.described import all_routes, encoded_openapi
from bcs.http.problems import KINDS
from bcs.wire.events import Identifier
from tests.support.event_schemas import unresolved
from tests.support.openapi_file import FILE, current

ROW = re.compile(r"^\| `(?P<kind>[a-z-]+)` \| (?P<status>\d+) \| (?P<again>yes|no) \|", re.MULTILINE)
URN = "urn:bcs:problem:"


def document() -> dict[str, Any]:
    """The document as it is served."""
    served: dict[str, Any] = json.loads(encoded_openapi())
    return served


def problems_described() -> dict[str, dict[str, Any]]:
    """Each kind of problem with a response of the document that it may be."""
    responses: dict[str, dict[str, Any]] = document()["components"]["responses"]
    return {
        urn.removeprefix(URN): response
        for response in responses.values()
        for urn in response["content"]["application/problem+json"]["schema"]["properties"]["type"]["enum"]
    }


def test_the_page_has_the_document_that_is_served() -> None:
    assert FILE.read_text() == current(), "python -m tests.support.openapi_file writes it"


def test_the_document_describes_each_kind_of_problem() -> None:
    # Nothing answers `http-error` today; it stands for what a later aiohttp may refuse.
    assert problems_described().keys() == KINDS.keys() - {"http-error"}


def test_the_page_of_problems_has_the_same_statuses_and_says_the_same_of_trying_again() -> None:
    rows = ROW.findall((Path(__file__).parents[2] / "docs/problems.md").read_text())
    assert {kind: int(status) for kind, status, _ in rows} | {"http-error": 400} == {
        kind: about.status for kind, about in KINDS.items()
    }
    again = {kind for kind, _, again in rows if again == "yes"}
    assert {kind for kind, response in problems_described().items() if "Retry-After" in response["headers"]} == again


def test_every_reference_in_the_document_leads_somewhere() -> None:
    whole = document()
    assert unresolved(whole) == []
    del whole["components"]["schemas"]["GraphFormat"]
    assert unresolved(whole) == ["#/components/schemas/GraphFormat"]


@pytest.mark.release
def test_the_document_is_openapi() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes seconds

    whole = document()
    assert list(OpenAPIV31SpecValidator(whole).iter_errors()) == []
    del whole["info"]["title"]
    assert len(list(OpenAPIV31SpecValidator(whole).iter_errors())) == 1


def test_no_two_calls_have_the_same_name() -> None:
    names = [route.name for route in all_routes()]
    assert len(names) == len(set(names)) > 10


def examples() -> Iterator[tuple[str, Any, Any]]:
    """Each body in the document with its schema and its example, and where it is."""
    whole = document()
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            bodies = {"request": operation["requestBody"]["content"]} if "requestBody" in operation else {}
            for status, response in operation["responses"].items():
                bodies[status] = response.get("content", {})
            for name, content in bodies.items():
                for media_type, media in content.items():
                    if media_type != "application/problem+json":
                        yield f"{method} {path} {name} {media_type}", media["schema"], media.get("example")


def strict() -> Any:
    """The schemas of the document, which accept no member that they do not have."""
    components = document()["components"]
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return components


def test_every_request_and_every_answer_has_a_valid_example() -> None:
    found, components = list(examples()), strict()
    assert len(found) > 20
    for place, schema, example in found:
        assert example is not None, f"{place}: CALLS in tests/support/api_examples.py has no example of it"
        validator = jsonschema_rs.validator_for(
            {**schema.get("contentSchema", schema), "components": components}, validate_formats=True
        )
        for each in [json.loads(line) for line in example.splitlines()] if "contentSchema" in schema else [example]:
            assert [error.message for error in validator.iter_errors(each)] == [], place


def test_every_problem_has_a_valid_example() -> None:
    components = strict()
    schema = {"$ref": "#/components/schemas/Problem", "components": components}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for kind, response in problems_described().items():
        assert f"#/components/examples/{kind}" in [
            example["$ref"] for example in response["content"]["application/problem+json"]["examples"].values()
        ]
        example = components["examples"][kind]["value"]
        validator.validate(example)
        about = KINDS[kind]  # type: ignore[index]
        assert (example["type"], example["title"], example["status"]) == (f"{URN}{kind}", about.title, about.status)


def test_every_call_has_examples_of_its_parameters() -> None:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            needed = [each for each in operation["parameters"] if each["required"]]
            assert all("example" in each for each in needed), f"{method} {path}"


def test_the_description_and_the_service_take_the_same_characters_for_blanks() -> None:
    # They differ in U+0085 and U+FEFF: one is a blank in Unicode alone, the other in ECMAScript, and so in JSON Schema.
    identifier = TypeAdapter(Identifier)
    described = jsonschema_rs.validator_for(identifier.json_schema())
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    texts = [text for one in characters for text in (one, f"{one}x", f"x{one}", f"x{one}x")]
    assert len(texts) > 250_000
    differ = [text for text in texts if described.is_valid(text) != _takes(identifier, text)]
    assert differ == []


def _takes(identifier: TypeAdapter[str], text: str) -> bool:
    try:
        identifier.validate_python(text)
    except ValidationError:
        return False
    return True
