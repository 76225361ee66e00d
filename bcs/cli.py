"""The command line."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from importlib import import_module
from typing import Annotated, Any

import anyio
import typer
from typer.core import TyperGroup

from bcs import __version__
from bcs.domain.errors import BcsError, ConfigurationError
from bcs.signals import hold, leave_at_once, release

# Each command imports what it needs: `healthcheck` runs every few seconds, and must not load Kafka and HTTP for it.

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2

# These are stopped in order.
_SERVICES = ("serve", "dev")
_OPERATORS = ("batches", "resolve", "pipelines", "actors", "intake", "dlq", "db", "doctor")


class _Commands(TyperGroup):
    """Those defined here, and the operators', whose modules are imported when one is asked for or all are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_OPERATORS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _OPERATORS:
            return typer.main.get_command(import_module(f"bcs.commands.{cmd_name}").app)
        return super().get_command(ctx, cmd_name)


_HELP = "Batch Conductor Service: which phases of a pipeline does a batch of essays still need?"
cli = typer.Typer(
    name="bcs",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cli.callback(help=_HELP)
def listen(context: typer.Context) -> None:
    """Let signals end a command; services are stopped in order."""
    if context.invoked_subcommand not in _SERVICES:
        release()


@cli.command()
def serve() -> None:
    """Run the service against the servers that the BCS_* environment variables name."""
    leave_at_once(EXIT_STOPPED)  # nothing has begun yet
    from bcs.logs import configure_logging
    from bcs.pipeline_config import pipelines_of
    from bcs.process import run_until_signalled
    from bcs.settings import load_settings

    settings = load_settings()
    definitions = pipelines_of(settings)
    configure_logging(settings)
    raise typer.Exit(_run(run_until_signalled, settings, definitions))


@cli.command()
def dev(
    demo: Annotated[bool, typer.Option("--demo", help="Play a small story and show the answers changing.")] = False,
) -> None:
    """Run everything on this machine: the service, PostgreSQL, and servers that speak Redis's and Kafka's protocols."""
    hold()
    from bcs.dev import run_dev

    raise typer.Exit(_run(run_dev, demo))


@cli.command()
def healthcheck() -> None:
    """Ask the service on this machine whether it is alive; for Docker. Exits 0 if it is, else 1."""
    from bcs.settings import load_settings_for_health_check

    settings = load_settings_for_health_check()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{host}:{settings.http_port}/healthz", timeout=5):
            return
    except (urllib.error.URLError, OSError) as error:
        typer.echo(f"not healthy: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The entry point: one readable line for what the operator can mend, a traceback for what only we can."""
    try:
        cli()
    except ConfigurationError as error:
        typer.echo(f"bcs: {error}", err=True)
        sys.exit(EXIT_MISCONFIGURED)
    except BcsError as error:
        typer.echo(f"bcs: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _run(main_task: Any, *arguments: Any) -> int:
    exit_code: int = anyio.run(main_task, *arguments, backend_options={"use_uvloop": _uvloop_present()})
    return exit_code


def _uvloop_present() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
