"""`bcs dev`: the whole service on one machine, with its own servers."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import indent

import anyio

from bcs.config.kafka_security import KafkaSecurity
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.config.settings import Settings
from bcs.devtools.demo import play
from bcs.devtools.environment import EnvFile, env_file, exports, variables_of
from bcs.devtools.keyboard import at_keyboard, key_press, single_keys
from bcs.devtools.output import echo, progress
from bcs.devtools.servers import embedded
from bcs.devtools.servers.postgres import postgres
from bcs.domain.pipelines import PipelineDefinitions
from bcs.errors import ConfigurationError, UnreadableConfiguration, os_reason
from bcs.observability.logs import configure_logging
from bcs.runtime.process import EXIT_STOPPED, run_until_signalled
from bcs.runtime.signals import held
from bcs.runtime.tree import Service
from bcs.wire import topics

_PARTITIONS = 4
_RESTART_KEY = "r"
_LOG_TAIL_BYTES = 4000


async def run_dev(demo: bool, log_file: Path | None = None, env_path: Path | None = None) -> int:
    """Start the servers, create the topics, run the service until a signal, and stop everything.

    :param demo: True to play a short story.
    :param log_file: the file for the log; None for standard error, or with the story for a file that is removed.
    :param env_path: a file that gets the variables for other commands; None for no file.
    :returns: the exit code.
    :raises EmbeddedServersMissing: the extra `embedded` is not installed.
    """
    try:
        exit_code = await _run(demo, log_file, env_path)
    except embedded.EmbeddedServerFailed:
        # Ctrl-C and the closing of the terminal also end the programs that the start of a server runs.
        if not held():
            raise
        exit_code = EXIT_STOPPED
    echo("All stopped.")
    return exit_code


async def _run(demo: bool, log_file: Path | None, env_path: Path | None) -> int:
    with ExitStack() as stack:
        file = stack.enter_context(env_file(env_path))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bcs-dev-")))
        redis, kafka, database = embedded.valkey(directory), embedded.kafka(directory), postgres(directory)
        servers = {"Redis (Valkey)": redis, "Kafka (Tansu, in memory)": kafka, "PostgreSQL": database}
        for name, server in servers.items():
            if held():
                return EXIT_STOPPED
            with progress(name):
                stack.enter_context(server)
        settings = _settings(f"redis://{redis.address}", kafka.address, database.url)
        definitions = pipelines_of(settings)
        log_file = log_file or (directory / "bcs.log" if demo else None)
        _send_log_to(log_file, settings)
        created = [*topics.CONSUMED, *topics.PUBLISHED]
        await embedded.create_topics(kafka.address, created, _PARTITIONS)
        echo("Starting BCS ...")
        exit_code = await _Runs(settings=settings, env_file=file, log_file=log_file, demo=demo).until_signalled(
            definitions
        )
        if exit_code != EXIT_STOPPED and log_file is not None:
            echo(log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace"), err=True)
        return exit_code


def _settings(redis_url: str, bootstrap_servers: str, database_url: str) -> Settings:
    return load_settings(
        http_host="127.0.0.1",
        redis_url=redis_url,
        redis_username=None,
        redis_password=None,
        database_url=database_url,
        database_password=None,
        kafka_bootstrap_servers=bootstrap_servers,
        # The embedded broker has neither TLS nor logins, whatever Kafka the environment describes.
        **{f"kafka_{each.name}": Settings.model_fields[f"kafka_{each.name}"].default for each in fields(KafkaSecurity)},
        # The embedded broker does not support idempotent producers.
        kafka_enable_idempotence=False,
        use_mock_repository=False,
        # Short times, because the group has one member on this machine; long times would only make the stop slow.
        kafka_session_timeout_seconds=6.0,
        kafka_heartbeat_interval_seconds=1.0,
    )


def _send_log_to(log_file: Path | None, settings: Settings) -> None:
    if log_file is None:
        configure_logging(settings)
        return
    try:
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UnreadableConfiguration(str(log_file), os_reason(error)) from None
    # Never closed, because the log writes to this descriptor until the end of the process.
    with redirect_stderr(os.fdopen(descriptor, "a", closefd=False)):
        configure_logging(settings)


@dataclass(slots=True, kw_only=True)
class _Runs:
    """Runs the service, and runs it again after each `r`.

    :param env_file: the file with the variables for other commands.
    :param log_file: None where the log goes to standard error.
    """

    settings: Settings
    env_file: EnvFile
    log_file: Path | None
    demo: bool
    _restart: bool = False
    _number: int = 0

    async def until_signalled(self, definitions: PipelineDefinitions) -> int:
        """Run the service until a signal.

        :returns: the exit code.
        """
        with single_keys():
            while True:
                self._restart = False
                exit_code = await run_until_signalled(
                    self.settings, definitions, reloads_on_hangup=False, alongside=self._accompany
                )
                if not self._restart or exit_code != EXIT_STOPPED:
                    return exit_code
                definitions = self._definitions_now(definitions)

    async def _accompany(self, service: Service, stop: Callable[[], bool]) -> None:
        self._number += 1
        base = f"http://{service.address[0]}:{service.address[1]}"
        async with anyio.create_task_group() as group:
            group.start_soon(self._print_start, base, service.address[1])
            await key_press(_RESTART_KEY)
            self._restart = stop()
            echo("Restarting BCS; the servers keep running ...")

    async def _print_start(self, base: str, port: int) -> None:
        variables = variables_of(self.settings, port)
        self.env_file.write(variables)
        if self._number > 1:
            echo(f"BCS is running again, at {base}. Kafka may take about ten seconds to give the partitions back.")
            return
        batch_id = "batch_1"
        _greet(base, self.settings, self.log_file)
        if self.demo:
            batch_id = f"demo-{uuid.uuid4().hex[:8]}"
            await play(base, self.settings.kafka_bootstrap_servers, batch_id)
        _print_next_steps(base, exports(variables), batch_id, played=self.demo)

    def _definitions_now(self, before: PipelineDefinitions) -> PipelineDefinitions:
        try:
            return pipelines_of(self.settings)
        except ConfigurationError as error:
            echo(f"bcs: {error}\nThe pipelines stay as they were before.", err=True)
            return before


def _greet(base: str, settings: Settings, log_file: Path | None) -> None:
    echo(
        f"""
BCS is running.
  HTTP        {base}
  Redis       {settings.redis_url.get_secret_value()}
  Kafka       {settings.kafka_bootstrap_servers}
  PostgreSQL  {settings.database_url.get_secret_value() if settings.database_url else "none"}
  Log         {"standard error" if log_file is None else log_file}
"""
    )


def _print_next_steps(base: str, variables: str, batch_id: str, *, played: bool) -> None:
    commands = {
        f"bcs batches show {batch_id}": "which essays block its phases",
        f"bcs batches history {batch_id}": "which facts and answers led to this",
        "bcs events tail": "the messages that BCS publishes",
        "bcs dlq list": "the messages that could not be processed",
        "bcs doctor": "checks of all servers and settings",
    }
    width = max(map(len, commands))
    explained = "\n".join(f"  {command:{width}}  # {text}" for command, text in commands.items())
    keys = f"{_RESTART_KEY} restarts the service and leaves the servers running; " if at_keyboard() else ""
    echo(
        f"""{"That was the story; BCS keeps running. " if played else ""}What to try next:
  curl -s {base}/healthz
  curl -s {base}/internal/v1/pipelines/define \\
    -H 'Content-Type: application/json' -d '{{"batch_id": "{batch_id}",
    "requested_pipeline": "ai_feedback", "correlation_id": "try-1"}}'

In another terminal, in this folder (or: bcs dev --env-file FILE):
{indent(_activation() + variables, "  ")}
{explained}
  bcs events sample BatchEssaysRegistered --batch mine | bcs events send -

{keys}Ctrl-C stops everything.
"""
    )


def _activation() -> str:
    """The line that makes `bcs` known to a new terminal; empty outside a virtual environment."""
    script = Path(sys.prefix, "bin", "activate")
    if not script.is_file():
        return ""
    here = Path.cwd()
    return f". {shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))}\n"
