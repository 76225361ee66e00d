"""Reads the file of callers: their names, their tokens and certificates, and what they may do.

callers:
  - name: orchestrator
    scopes: [resolve, report]
    token_sha256: [9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08]
  - name: operator
    scopes: [read, operate]
    tokens: ["a-random-text-of-32-characters-or-more"]
    certificates: [operator.example.com]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bcs.http.identity import CallerIdentity, Scope

_MOST_TOKEN_CHARACTERS = 4096


class CallersFileUnusable(ValueError):
    """The file of callers can't be used.

    :param cause: the line and what is wrong with it. It repeats no text of the file, which has secrets.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


# The alphabet of bearer tokens (RFC 6750). A shorter token could be guessed.
_Token = Annotated[str, Field(min_length=16, max_length=_MOST_TOKEN_CHARACTERS, pattern=r"^[A-Za-z0-9._~+/-]+=*$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
# Names are shown in the log and in the history.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Caller(_Strict):
    name: _Name
    # Not strict, because YAML has no enumerations.
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1)]
    tokens: list[_Token] = []
    token_sha256: list[_Digest] = []
    certificates: list[Annotated[str, Field(min_length=1, max_length=1024)]] = []


class _File(_Strict):
    callers: Annotated[list[_Caller], Field(min_length=1)]


@dataclass(frozen=True, slots=True, repr=False)
class KnownCallers:
    """The callers of a file.

    :param by_digest: by the SHA-256 of each token.
    :param by_certificate: by the names in their certificates.
    """

    by_digest: Mapping[bytes, CallerIdentity]
    by_certificate: Mapping[str, CallerIdentity]


def parse_callers(text: str) -> KnownCallers:
    """The callers in the text of a file, which is YAML or JSON.

    :raises CallersFileUnusable: with the line of the first problem.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # The error's own text can repeat a token, for example one that begins with an asterisk.
        mark = error.problem_mark or error.context_mark
        raise CallersFileUnusable(
            f"{f'line {mark.line + 1}: ' if mark else ''}not valid YAML; write tokens in quotes"
        ) from None
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, RecursionError):  # `!!bool x` is a LookupError
        raise CallersFileUnusable("not valid YAML") from None
    if not isinstance(document, dict):
        raise CallersFileUnusable("line 1: it must be a mapping with `callers`")
    if repeated := _repeated_key(root):
        raise CallersFileUnusable(f"line {repeated.start_mark.line + 1}: this key occurs twice")
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise CallersFileUnusable(f"line {_line(root, first['loc'])}: {_problem(first)}") from None
    return _known(file, root)


def _known(file: _File, root: yaml.Node | None) -> KnownCallers:
    by_digest: dict[bytes, CallerIdentity] = {}
    by_certificate: dict[str, CallerIdentity] = {}
    names: set[str] = set()

    def ensure_new(key: object, known: Mapping[Any, object] | set[str], what: str, *path: int | str) -> None:
        if key in known:
            raise CallersFileUnusable(f"line {_line(root, ('callers', *path))}: {what} occurs twice")

    for position, caller in enumerate(file.callers):
        ensure_new(caller.name, names, "this name", position, "name")
        names.add(caller.name)
        identity = CallerIdentity(caller.name, frozenset(caller.scopes))
        if not (caller.tokens or caller.token_sha256 or caller.certificates):
            line = _line(root, ("callers", position))
            raise CallersFileUnusable(f"line {line}: this caller has no tokens, token_sha256 or certificates")
        digests = [("tokens", number, digest_of(token)) for number, token in enumerate(caller.tokens)]
        digests += [("token_sha256", number, bytes.fromhex(text)) for number, text in enumerate(caller.token_sha256)]
        for member, number, digest in digests:
            ensure_new(digest, by_digest, "this token", position, member, number)
            by_digest[digest] = identity
        for number, certificate in enumerate(caller.certificates):
            ensure_new(certificate, by_certificate, "this certificate", position, "certificates", number)
            by_certificate[certificate] = identity
    return KnownCallers(by_digest, by_certificate)


def digest_of(token: str) -> bytes:
    """The SHA-256 of a token."""
    # aiohttp turns bytes that are not UTF-8 into lone surrogates.
    return sha256(token.encode(errors="surrogateescape")).digest()


def _problem(problem: Any) -> str:
    # The name of an unknown member could be a token in the wrong place.
    named = [part for part in problem["loc"] if isinstance(part, str)]
    if problem["type"] == "extra_forbidden":
        return "unknown member; known are callers, and of each: name, scopes, tokens, token_sha256, certificates"
    text = "must be a mapping" if problem["type"] == "model_type" else problem["msg"]
    return f"{named[-1] if named else 'callers'}: {text}"


def _line(node: yaml.Node | None, path: tuple[int | str, ...]) -> int:
    """The line of a member; where there is no such member, the line of what should have it."""
    for part in path:
        if isinstance(node, yaml.MappingNode):
            below = next((pair for pair in node.value if pair[0].value == part), None)
            node = below[1] if below and isinstance(below[1], yaml.CollectionNode) else below[0] if below else node
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
    return node.start_mark.line + 1 if node else 1


def _repeated_key(node: yaml.Node | None) -> yaml.Node | None:
    """A key that occurs twice in its mapping; in PyYAML the later one would replace the earlier one silently."""
    for mapping in _mappings(node, set()):
        seen: set[object] = set()
        for key, _ in mapping.value:
            if str(key.value) in seen:
                return key  # type: ignore[no-any-return]
            seen.add(str(key.value))
    return None


def _mappings(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return  # an alias can lead back to what contains it
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    for child in node.value:
        for each in child if isinstance(child, tuple) else (child,):
            yield from _mappings(each, seen)
