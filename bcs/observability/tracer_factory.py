"""Opens the tracer of a process, as its settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bcs.config.settings import Settings
from bcs.errors import ConfigurationError
from bcs.observability.tracing import NO_TRACER, Tracer


class TracingUnavailable(ConfigurationError):
    """Tracing is on, and its packages are missing."""

    remedy = "pip install 'batch-conductor-service[tracing]'"

    def __init__(self) -> None:
        super().__init__(f"BCS_TRACING needs the extra `tracing`: {self.remedy}")


def open_tracer(settings: Settings) -> Tracer:
    """The tracer of this process.

    :raises TracingUnavailable: the packages of the extra `tracing` are missing.
    :raises ConfigurationError: an `OTEL_…` variable can't be used.
    """
    if not settings.tracing:
        return NO_TRACER
    try:
        # This module needs the extra `tracing`.
        from bcs.observability.opentelemetry import tracer_of
    except ImportError as error:
        raise TracingUnavailable from error
    return tracer_of(settings)


@asynccontextmanager
async def tracing(settings: Settings) -> AsyncIterator[Tracer]:
    """The tracer of a command. At the end its spans are exported, within a time limit.

    :raises ConfigurationError: see `open_tracer`.
    """
    tracer = open_tracer(settings)
    try:
        yield tracer
    finally:
        await tracer.aclose()
