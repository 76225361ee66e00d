"""Texts that must not be shown: from a variable, or from a file that is read again whenever the text is needed.

Kubernetes replaces the files of a mounted secret while a pod runs. So a new password is used by the next connection,
without a restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from bcs.config.files import read_regular_file
from bcs.errors import os_reason

SECRETS_DIRECTORY = "BCS_SECRETS_DIR"
"""The variable with the directory of secrets: one file for each, named as its variable."""

_FILE = "_FILE"
_MOST_BYTES = 65_536


class SecretFileUnusable(ValueError):
    """The file of a secret has no usable text.

    :param cause: why, in a few words, without any of the text.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Secret(SecretStr):
    """A text that is masked wherever it is printed.

    :param text: the text; with a file, the one that was read last.
    :param path: the file; None for a text that does not change.
    """

    def __init__(self, text: str, path: Path | None = None) -> None:
        super().__init__(text)
        self._path = path
        self._problem = ""

    @classmethod
    def from_file(cls, path: Path) -> Secret:
        """The secret in a file.

        :raises SecretFileUnusable: the file can't be read, is empty, is too large or is not text.
        """
        return cls(_read(path), path)

    def get_secret_value(self) -> str:
        """The text, read again where it is in a file. While the file is unusable, the text before is used."""
        if self._path is None:
            return self._secret_value
        try:
            self._secret_value = _read(self._path)
            self._problem = ""
        except SecretFileUnusable as unusable:
            if unusable.cause != self._problem:
                self._problem = unusable.cause
                from bcs.config.secret_log import warn_of_file

                warn_of_file(self._path, unusable.cause)
        return self._secret_value


def secret_variables(settings: type[BaseSettings]) -> list[str]:
    """The variables of the settings that are secrets, each of which may be in a file."""
    return [_variable(name) for name in _names(settings)]


class SecretFiles(PydanticBaseSettingsSource):
    """Secrets from the files that `BCS_…_FILE` name, and from the directory that `BCS_SECRETS_DIR` names.

    :param settings: the class of the settings.
    :param environment: names to values; an empty value counts as unset.
    """

    def __init__(self, settings: type[BaseSettings], environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(settings)
        self._environment = {name.upper(): value.strip() for name, value in environment.items() if value.strip()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """See `PydanticBaseSettingsSource`."""
        variable = _variable(field_name)
        named = self._environment.get(variable + _FILE)
        if named is None:
            return self._in_directory(variable), field_name, False
        if variable in self._environment:
            return Unusable(f"is set, and {variable}{_FILE} as well; only one may be"), field_name, False
        return _secret_or_problem(Path(named), f"the file of {variable}{_FILE}"), field_name, False

    def __call__(self) -> dict[str, Any]:
        """See `PydanticBaseSettingsSource`."""
        found = {name: self.get_field_value(field, name)[0] for name, field in _names(self.settings_cls).items()}
        return {name: value for name, value in found.items() if value is not None}

    def _in_directory(self, variable: str) -> Secret | Unusable | None:
        directory = self._environment.get(SECRETS_DIRECTORY)
        if directory is None or variable in self._environment:
            return None
        for name in (variable, variable.lower()):
            path = Path(directory, name)
            if path.exists():
                return _secret_or_problem(path, f"the file {name} in {SECRETS_DIRECTORY}")
        return None


class Unusable(str):
    """Stands for a secret that can't be had, so that the settings name it with all other problems."""

    __slots__ = ()


def _secret_or_problem(path: Path, name: str) -> Secret | Unusable:
    try:
        return Secret.from_file(path)
    except SecretFileUnusable as unusable:
        return Unusable(f"{name} {unusable.cause}")


def usable(value: object) -> object:
    """Let a validator refuse what stands for an unusable secret, and trim a text.

    :raises ValueError: the secret can't be had.
    """
    if isinstance(value, Unusable):
        raise ValueError(str(value))  # noqa: TRY004 (pydantic reports a ValueError)
    return value.strip() if isinstance(value, str) else value


def _names(settings: type[BaseSettings]) -> dict[str, FieldInfo]:
    return {name: field for name, field in settings.model_fields.items() if "Secret" in str(field.annotation)}


def _variable(name: str) -> str:
    return f"BCS_{name.upper()}"


def _read(path: Path) -> str:
    try:
        content = read_regular_file(path, _MOST_BYTES + 1)
    except OSError as error:
        raise SecretFileUnusable(f"can't be read: {os_reason(error)}") from error
    if len(content) > _MOST_BYTES:
        raise SecretFileUnusable(f"has more than {_MOST_BYTES} bytes")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise SecretFileUnusable("is not UTF-8 text") from None
    if not text:
        raise SecretFileUnusable("is empty")
    return text
