"""What the log says of secrets. Imported where it is said, because structlog loads rich, which is slow."""

from __future__ import annotations

from pathlib import Path

import structlog

log = structlog.stdlib.get_logger("bcs.secrets")


def warn_of_file(file: Path, cause: str) -> None:
    """Log that the file of a secret is not usable any more."""
    log.warning("secret_file_unusable", file=str(file), cause=cause)


def warn_of_url(variable: str, problem: str) -> None:
    """Log that the changed URL of a store is not used."""
    log.warning("changed_url_unusable", variable=variable, problem=problem)
