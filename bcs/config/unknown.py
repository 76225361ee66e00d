"""Finds what looks like a setting and is none: misspelt variables, and files in the directory of secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bcs.config.secrets import SECRETS_DIRECTORY, secret_variables
from bcs.config.settings import Settings


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable of the environment with the prefix of BCS that is not a setting; or a file that is not a secret.

    :param near: the variable that was probably meant; None where no name is similar.
    """

    name: str
    near: str | None

    @property
    def problem(self) -> str:
        """The problem in one line."""
        return f"{self.name} is not a setting of BCS, and has no effect"

    def __str__(self) -> str:
        return f"{self.problem}; did you mean {self.near}?" if self.near else self.problem


class UnknownSecretFile(UnknownVariable):
    """A file in `BCS_SECRETS_DIR` that is not the file of a secret."""

    __slots__ = ()

    @property
    def problem(self) -> str:
        """The problem in one line."""
        return f"the file {self.name} in {SECRETS_DIRECTORY} is not a secret of BCS, and has no effect"


# For a service `bcs` or `bcs-…`, Kubernetes sets variables of these forms in the pods of its namespace.
_OF_KUBERNETES = re.compile(
    r"BCS(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)
_ADDRESS_OF_KUBERNETES = ("tcp://", "udp://", "sctp://")
_NEAR_ENOUGH = 0.6


def unknown_variables(environment: Mapping[str, str]) -> list[UnknownVariable]:
    """The variables with the prefix `BCS_` that are not settings, except those of the test suite and of Kubernetes.

    :param environment: names to values.
    """
    variables = [*(f"BCS_{name.upper()}" for name in Settings.model_fields)]
    variables += [f"{variable}_FILE" for variable in secret_variables(Settings)]
    known = {variable.removeprefix("BCS_"): variable for variable in variables}
    unknown = []
    for name, value in sorted(environment.items()):
        upper = name.upper()
        short = upper.removeprefix("BCS_")
        if upper == short or short in known or short.startswith("TEST_"):
            continue
        if _OF_KUBERNETES.fullmatch(upper) or value.startswith(_ADDRESS_OF_KUBERNETES):
            continue
        unknown.append(UnknownVariable(name, known.get(_nearest(short, known))))
    return unknown


def unknown_secret_files(settings: Settings) -> list[UnknownVariable]:
    """The files in `BCS_SECRETS_DIR` that are not secrets, except those whose names begin with a dot."""
    known = {variable.removeprefix("BCS_"): variable for variable in secret_variables(Settings)}
    used = {*known.values(), *map(str.lower, known.values())}
    return [
        UnknownSecretFile(name, known.get(_nearest(name.upper().removeprefix("BCS_"), known)))
        for name in _names_in(settings.secrets_dir)
        if not name.startswith(".") and name not in used
    ]


def _names_in(directory: Path | None) -> list[str]:
    with suppress(OSError):  # it was readable when the settings were loaded
        return sorted(path.name for path in directory.iterdir()) if directory else []
    return []


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to a name; empty where none is similar."""
    longer = [each for each in known if each.startswith(f"{name}_") or each.endswith(f"_{name}")]
    near = longer if len(longer) == 1 else get_close_matches(name, known, 1, _NEAR_ENOUGH)
    return near[0] if near else ""
