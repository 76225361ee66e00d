"""The BCS_* variables with which other commands find the servers of `bcs dev`: printed, and as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from bcs.config.settings import Settings
from bcs.errors import ConfigurationError, os_reason

# Always included, also with default values, because the operator's shell may have other values.
_ALWAYS = ("http_port", "redis_url", "kafka_bootstrap_servers", "kafka_enable_idempotence", "database_url")


class FileUnwritable(ConfigurationError):
    """The file for the variables can't be written.

    :param path: the path of the file.
    :param cause: why, in a few words.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"--env-file {path} can't be written: {cause}")
        self.path = path
        self.cause = cause


def variables_of(settings: Settings, http_port: int) -> dict[str, str]:
    """The variables with which a command uses the same servers and options as the service.

    :param http_port: the port at which the service listens; the setting may be 0.
    """
    used = settings.model_copy(update={"http_port": http_port})
    given = [name for name in Settings.model_fields if os.environ.get(f"BCS_{name.upper()}")]
    return {f"BCS_{name.upper()}": _text(getattr(used, name)) for name in dict.fromkeys((*_ALWAYS, *given))}


def exports(variables: Mapping[str, str]) -> str:
    """The variables as lines for a shell."""
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


@contextmanager
def env_file(path: Path | None) -> Iterator[EnvFile]:
    """A file with the variables, which exists while the service runs.

    :param path: None for no file.
    :raises FileUnwritable: the file can't be written.
    """
    file = EnvFile(path)
    file.write({})
    try:
        yield file
    finally:
        if path is not None:
            with suppress(OSError):
                path.unlink()


class EnvFile:
    """A file of lines `NAME=value`, for a shell's `source` and for Docker's `--env-file`.

    :param path: None for no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, variables: Mapping[str, str]) -> None:
        """Replace the content of the file by these variables.

        :raises FileUnwritable: the file can't be written.
        """
        if self._path is None:
            return
        try:
            self._path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        except OSError as error:
            raise FileUnwritable(self._path, os_reason(error)) from error


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
