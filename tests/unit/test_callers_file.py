"""The file of callers: what it says, and errors that name a line and repeat none of its secrets."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from bcs.http.callers_file import CallersFileUnusable, parse_callers
from bcs.http.identity import Scope

TOKEN, OTHER = "token-of-the-orchestrator", "second-token-while-rotating"
GOOD = f"""\
callers:
  - name: orchestrator
    scopes: [resolve, report]
    tokens: ["{TOKEN}", "{OTHER}"]
  - name: operator
    scopes: [read, operate]
    token_sha256:
      - {sha256(b"operators-own-token").hexdigest()}
    certificates: [operator.example.com, "spiffe://example.com/operator"]
"""


def test_a_file_names_callers_with_several_tokens_and_certificates() -> None:
    known = parse_callers(GOOD)
    names = {digest: identity.name for digest, identity in known.by_digest.items()}
    assert names == {
        sha256(TOKEN.encode()).digest(): "orchestrator",
        sha256(OTHER.encode()).digest(): "orchestrator",
        sha256(b"operators-own-token").digest(): "operator",
    }
    operator = known.by_certificate["operator.example.com"]
    assert operator is known.by_certificate["spiffe://example.com/operator"]
    assert operator.scopes == {Scope.READ, Scope.OPERATE}


def test_a_file_may_be_json() -> None:
    document = {"callers": [{"name": "bos", "scopes": ["resolve"], "tokens": [TOKEN]}]}
    [identity] = parse_callers(json.dumps(document)).by_digest.values()
    assert identity.name == "bos"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "a mapping with `callers`"),
        ("- a", 1, "a mapping with `callers`"),
        ("callers: []", 1, "at least 1 item"),
        ("callers:\n  - 5", 2, "must be a mapping"),
        ("callers: &all\n  - *all", 1, "mapping"),
        ("callers:\n  - name: x\n    name: y", 3, "this key occurs twice"),
        (GOOD.replace("report]", "raport]"), 3, "'resolve', 'report', 'read' or 'operate'"),
        (GOOD.replace("[resolve, report]", "[]"), 3, "at least 1 item"),
        (GOOD.replace("name: operator", "name: orchestrator"), 5, "this name occurs twice"),
        (GOOD.replace("name: operator", "name: an operator"), 5, "name: String should match"),
        (GOOD.replace("certificates", "certificats"), 9, "unknown member"),
        (GOOD.replace(OTHER, TOKEN), 4, "this token occurs twice"),
        (GOOD.replace("operator.example.com", "spiffe://example.com/operator"), 9, "this certificate occurs twice"),
        (GOOD.replace(f'["{TOKEN}", "{OTHER}"]', "[]"), 2, "no tokens, token_sha256 or certificates"),
        (GOOD.replace(OTHER, "too-short"), 4, "at least 16 characters"),
        (GOOD.replace(OTHER, "a token with blanks in it"), 4, "tokens: String should match"),
        (GOOD.replace(f'"{OTHER}"', "1234567890123456789"), 4, "tokens: Input should be a valid string"),
        (GOOD.replace(f'"{OTHER}"', f"*{OTHER}"), 4, "not valid YAML"),
        (GOOD.replace(f'"{OTHER}"', f"!{OTHER} x"), 4, "not valid YAML"),
        (GOOD.replace("      - ", "      - 0"), 8, "token_sha256: String should match"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line_and_without_its_text(text: str, line: int, problem: str) -> None:
    with pytest.raises(CallersFileUnusable) as refused:
        parse_callers(text)
    assert problem in refused.value.cause
    assert f"line {line}: " in refused.value.cause
    for secret in (TOKEN, OTHER, "too-short", "a token with blanks", "12345678901"):
        assert secret not in refused.value.cause


@pytest.mark.parametrize("text", ["a: !!bool x", 'a: !!int ""', "a: 2026-99-99", "[" * 1000])
def test_a_file_that_pyyaml_fails_on_is_refused(text: str) -> None:
    with pytest.raises(CallersFileUnusable, match="not valid YAML"):
        parse_callers(text)
