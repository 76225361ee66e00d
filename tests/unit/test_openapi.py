"""The description of the HTTP API says what the code and the pages say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
from pydantic import TypeAdapter, ValidationError

from bcs.http.described import all_routes, encoded_openapi
from bcs.http.problems import KINDS
from bcs.http.requests import CompletePhase, DefinePipeline
from bcs.wire.events import Identifier
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
    references = [value for name, value in members(whole) if name == "$ref"]
    assert references
    for reference in references:
        place: Any = whole
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """Each member of each object in a document."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from members(inner)


def test_no_two_calls_have_the_same_name() -> None:
    names = [route.name for route in all_routes()]
    assert len(names) == len(set(names)) > 10


def test_the_examples_are_valid_requests() -> None:
    paths = document()["paths"]
    for path, model in (("pipelines/define", DefinePipeline), ("phases/complete", CompletePhase)):
        [media] = paths[f"/internal/v1/{path}"]["post"]["requestBody"]["content"].values()
        model.model_validate(media["example"])


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
