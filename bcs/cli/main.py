"""The command line."""

from __future__ import annotations

import errno
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from typer.core import TyperGroup

from bcs import __version__
from bcs.errors import BcsError, ConfigurationError
from bcs.runtime.last_resort import exit_after
from bcs.runtime.running import call_with_timeout, run
from bcs.runtime.signals import hold, leave_at_once, release

# Each command imports its own modules: `healthcheck` runs every few seconds, and must not load Kafka and HTTP.

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2

HEALTH_SECONDS = 5.0
_STDOUT = 1
# The errors of a failed write to a pipe, a file or a terminal.
_OF_THE_OUTPUT = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# How long hanging threads may keep the process after all work is done and all output is written.
_THREADS_SECONDS = 2.0
_UVLOOP_THREADS = "64"
# The commands whose services stop in order.
_SERVICES = ("serve", "dev")
_OPERATORS = (
    "batches",
    "history",
    "resolve",
    "explain",
    "plan",
    "pipelines",
    "actors",
    "intake",
    "dlq",
    "events",
    "db",
    "doctor",
)


class _Commands(TyperGroup):
    """All commands. The module of an operator's command is imported only when the command is used or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_OPERATORS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _OPERATORS:
            return typer.main.get_command(import_module(f"bcs.cli.{cmd_name}").app)
        return super().get_command(ctx, cmd_name)


_HELP = "Batch Conductor Service: which phases of a pipeline does a batch of essays still need?"
cli = typer.Typer(
    name="bcs",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback(help=_HELP)
def listen(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Let signals end a command; services are stopped in order."""
    if context.invoked_subcommand not in _SERVICES:
        release()


@cli.command()
def serve() -> None:
    """Run the service with the servers in the BCS_* environment variables."""
    leave_at_once(EXIT_STOPPED)  # no work has begun yet
    from bcs.config.loading import load_settings
    from bcs.config.pipelines import pipelines_of
    from bcs.observability.logs import configure_logging
    from bcs.runtime.process import run_until_signalled

    settings = load_settings()
    definitions = pipelines_of(settings)
    configure_logging(settings)
    raise typer.Exit(_run(partial(run_until_signalled, reloads_on_hangup=True), settings, definitions))


@cli.command()
def dev(
    demo: Annotated[bool, typer.Option("--demo", help="Play a short story that shows how answers change.")] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file",
            dir_okay=False,
            help="Write the log to this file. [default: standard error, or with --demo a file that is removed]",
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Write the BCS_* variables for other commands into this file; it is removed at the end.",
        ),
    ] = None,
) -> None:
    """Run everything on this machine: the service, PostgreSQL, and servers that speak Redis's and Kafka's protocols.

    Ctrl-C stops everything. At a terminal, the key r restarts only the service, which then reads the pipeline file
    again.
    """
    hold()
    from bcs.devtools.dev import run_dev

    raise typer.Exit(_run(run_dev, demo, log_file, env_file))


@cli.command()
def healthcheck() -> None:
    """Check whether the service on this machine is alive; for Docker. Exits 0 if it is, else 1."""
    from bcs.config.loading import load_settings_for_health_check

    url = load_settings_for_health_check().local_probe_url
    if url is None:
        typer.echo(
            "not healthy: BCS_HTTP_PORT or BCS_HTTP_PROBE_PORT is 0, so the port of the service is unknown", err=True
        )
        raise typer.Exit(EXIT_FAILED)
    try:
        call_with_timeout(lambda: _open(f"{url}/healthz"), HEALTH_SECONDS)
    except OSError as error:
        typer.echo(f"not healthy: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The entry point. An error that the operator can fix is one readable line; any other error is a traceback."""
    exit_code = EXIT_FAILED
    try:
        exit_code = _exit_code()
    finally:
        exit_after(_THREADS_SECONDS, exit_code)
    sys.exit(exit_code)


def _exit_code() -> int:
    unwritten: OSError | None = None
    exit_code = EXIT_FAILED
    try:
        exit_code = _carried_out()
    except OSError as error:
        if error.errno not in _OF_THE_OUTPUT or error.filename is not None:
            raise
        unwritten = error
    unwritten = unwritten or _unwritten_output()
    if unwritten is None:
        return exit_code
    _discard_output()
    if unwritten.errno == errno.EPIPE:
        return EXIT_STOPPED  # the reader has closed the pipe, such as `| head -1`
    _complain(f"the output can't be written: {unwritten.strerror}")
    return EXIT_FAILED


def _unwritten_output() -> OSError | None:
    """The error with which the output failed; None if all of it was written."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _discard_output() -> None:
    # Otherwise Python would try to write the rest at its end, and exit with its own code.
    with suppress(OSError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, _STDOUT)
        os.close(null_device)


def _carried_out() -> int:
    try:
        cli()
    except ConfigurationError as error:
        _complain(error)
        return EXIT_MISCONFIGURED
    except BcsError as error:
        _complain(error)
        return EXIT_FAILED
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None  # Typer and rich have found a closed pipe
        return ended.code if isinstance(ended.code, int) else EXIT_STOPPED if ended.code is None else EXIT_FAILED
    return EXIT_STOPPED


def _complain(error: BcsError | str) -> None:
    with suppress(OSError):  # the terminal may be closed
        typer.echo(f"bcs: {error}", err=True)


def _open(url: str) -> None:
    # No proxy: the service is on this machine, and a proxy would look for it elsewhere.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        from bcs.ops.credentials import tls_context

        handlers.append(urllib.request.HTTPSHandler(context=tls_context()))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(url, timeout=HEALTH_SECONDS):
        pass


def _run(main_task: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Run a service, and make sure that the process ends soon after the service."""

    async def service() -> int:
        exit_code = EXIT_FAILED
        try:
            exit_code = await main_task(*arguments)
        finally:
            # At its end, uvloop waits for threads that look up names, for minutes if the name service does not answer.
            exit_after(_THREADS_SECONDS, exit_code)
        return exit_code

    # uvloop looks up names in half of these threads (libuv has four by default). If the server of one name is silent,
    # repeated lookups of this name would use all threads, and other names could not be looked up.
    os.environ.setdefault("UV_THREADPOOL_SIZE", _UVLOOP_THREADS)
    try:
        import uvloop
    except ImportError:
        return run(service)
    return anyio.run(service, backend_options={"loop_factory": uvloop.new_event_loop})
