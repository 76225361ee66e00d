"""Structured logs, for BCS and its libraries: JSON in production, readable text elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from bcs.config.settings import Environment, Settings
from bcs.observability.log_sums import LogSums
from bcs.observability.log_writer import LogWriter
from bcs.observability.telemetry import LOG_RECORDS_DROPPED
from bcs.observability.tracing import name_span

log = structlog.stdlib.get_logger("bcs.logs")

# How much may wait for the reader of the log; more is dropped.
_LIMIT_BYTES = 4 * 1024 * 1024
# How long the end of the process waits for lines that are not written yet.
_FLUSH_SECONDS = 1.0


def configure_logging(settings: Settings) -> None:
    """Send all logs of this process to standard error, without ever waiting for their reader."""

    def name_instance(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["instance"] = settings.instance
        return event

    sums = LogSums()

    shared: list[structlog.typing.Processor] = [
        name_instance,
        structlog.contextvars.merge_contextvars,
        *([name_span] if settings.tracing else []),
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
        # Without local variables, as in JSON, because they could put pupils' data into the log.
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr is not None and sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            sums,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )
    root = logging.getLogger()
    # Where standard error was closed before the start, its file descriptor may be a socket now.
    root.handlers[:] = [logging.NullHandler() if sys.stderr is None else _BackgroundHandler(formatter, sums)]
    root.setLevel(settings.log_level)
    # aiokafka logs every failed reconnection as an error; our own actors log once that Kafka is away.
    logging.getLogger("aiokafka").setLevel(logging.INFO if settings.log_level == "DEBUG" else logging.CRITICAL)
    _log_what_python_would_print()


class _BackgroundHandler(logging.Handler):
    """Formats log records, and passes the lines to the thread that writes to standard error."""

    def __init__(self, formatter: logging.Formatter, sums: LogSums) -> None:
        super().__init__()
        self._sums = sums
        self.setFormatter(formatter)
        self._writer = LogWriter(
            sys.stderr.fileno(), limit_bytes=_LIMIT_BYTES, dropped=LOG_RECORDS_DROPPED.inc, notice=self._notice
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Never wait, and never fail."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (a bad log record must not break the code that logs it)
            LOG_RECORDS_DROPPED.inc()
            return
        self._writer.put(line)

    def flush(self) -> None:
        """Wait a limited time until all lines are written. `logging.shutdown` calls this at the end of Python."""
        self._sums.flush()
        self._writer.flush(_FLUSH_SECONDS)

    def _notice(self, count: int) -> str:
        message = "%d log records were dropped: they were not read in time, or the disk was full"
        return self.format(logging.LogRecord(log.name, logging.WARNING, __file__, 0, message, (count,), None))


def _log_what_python_would_print() -> None:
    """Log the errors that Python itself would write to standard error, where a write waits for the reader."""

    def unraisable(hook: Any) -> None:
        # Without the object's own text, which could have pupils' data in it.
        where = getattr(hook.object, "__qualname__", type(hook.object).__qualname__)
        log.error("error_ignored", where=where, exc_info=hook.exc_value)

    def in_thread(hook: threading.ExceptHookArgs) -> None:
        log.error("thread_failed", thread=hook.thread.name if hook.thread else None, exc_info=hook.exc_value)

    logging.captureWarnings(capture=True)
    sys.unraisablehook = unraisable
    threading.excepthook = in_thread
