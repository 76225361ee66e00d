"""The BCS_* variables that the commands need beside a service that `bcs dev` runs: printed, and as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bcs.config.settings import Settings
from bcs.errors import ConfigurationError

# Whether or not they differ from their defaults: an operator's shell may have others.
_ALWAYS = ("http_port", "redis_url", "kafka_bootstrap_servers", "kafka_enable_idempotence", "database_url")


class FileUnwritable(ConfigurationError):
    """The file for the variables can't be written.

    :param path: of the file.
    :param cause: why, in a few words.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"--env-file {path} can't be written: {cause}")
        self.path = path
        self.cause = cause


def variables_of(settings: Settings, http_port: int) -> dict[str, str]:
    """The variables with which a command finds the same servers as the service, and treats them as the service does.

    :param http_port: at which the service listens; the setting may say 0.
    """
    used = settings.model_copy(update={"http_port": http_port})
    given = [name for name in Settings.model_fields if os.environ.get(f"BCS_{name.upper()}")]
    return {f"BCS_{name.upper()}": _text(getattr(used, name)) for name in dict.fromkeys((*_ALWAYS, *given))}


def exports(variables: Mapping[str, str]) -> str:
    """Lines for a shell."""
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


@contextmanager
def env_file(path: Path | None) -> Iterator[EnvFile]:
    """A file with the variables, which is there as long as the service is.

    :param path: None for no file.
    :raises FileUnwritable: it can't be written.
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
        """Write these, and nothing else.

        :raises FileUnwritable: that is not possible.
        """
        if self._path is None:
            return
        try:
            self._path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        except OSError as error:
            raise FileUnwritable(self._path, error.strerror or str(error)) from error


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
