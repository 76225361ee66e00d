"""Structured logs: JSON in production, readable elsewhere; the libraries' own records come out the same way."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from bcs.settings import Environment, Settings


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs of this process to a stream.

    :param stream: none means standard error.
    """

    def name_instance(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if settings.instance_name:
            event["instance"] = settings.instance_name
        return event

    shared: list[structlog.typing.Processor] = [
        name_instance,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if settings.environment is Environment.PRODUCTION:
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    else:
        # Without local variables, here as in JSON: they would put pupils' data into the logs.
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=(stream or sys.stderr).isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # aiokafka reports every failed reconnection as an error; our own actors say once that Kafka is away.
    logging.getLogger("aiokafka").setLevel(logging.INFO if settings.log_level == "DEBUG" else logging.CRITICAL)
