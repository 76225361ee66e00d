"""The command line: commands, arguments, options, defaults, help; and exit codes, of commands that are run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, get_origin

import anyio
import typer

from tests.support.commands import bcs
from tests.surface.facts import lines_of, said_lines_of
from tests.surface.placeholders import Placeholders

_OF_PARAMETERS = (
    "help",
    "required",
    "default",
    "multiple",
    "is_flag",
    "min",
    "max",
    "prompt",
    "envvar",
    "hidden",
    "metavar",
)
_NOBODY = "127.0.0.1:1"
_USUAL: Mapping[str, object] = {
    "BCS_REDIS_URL": f"redis://{_NOBODY}",
    "BCS_HTTP_PORT": 1,
    "BCS_KAFKA_BOOTSTRAP_SERVERS": _NOBODY,
}
# This address is nobody's, and the variable before it no setting: so there is a line in the log, and an end.
_IN_VAIN: Mapping[str, object] = {
    "BCS_ENVIRONMENT": "production",
    "BCS_INSTANCE_NAME": "surface",
    "BCS_RETRY_AFTER": 1,
    "BCS_HTTP_HOST": "203.0.113.1",
}
# Each ends soon, and needs no server.
_RUN: Mapping[str, tuple[tuple[str, ...], Mapping[str, object]]] = {
    "bcs version": (("version",), {}),
    "bcs no-such-command": (("no-such-command",), {}),
    "bcs serve, with a wrong setting": (("serve",), {"BCS_HTTP_TIMEOUT": "soon"}),
    "bcs serve, at an address of nobody": (("serve",), _IN_VAIN),
    "bcs healthcheck, without a service": (("healthcheck",), {}),
    "bcs batches show, without Redis": (("batches", "show", "batch"), {}),
    "bcs db upgrade, without a database": (("db", "upgrade"), {}),
}
_MOST_LINES = 3  # wrong usage is told in more


def facts_of_commands(commands: typer.Typer) -> list[str]:
    """Lines for each command, in the order of the help."""
    [ours] = [point.name for point in entry_points(group="console_scripts") if point.value.startswith("bcs.")]
    return list(_of_command(ours, typer.main.get_command(commands)))


async def facts_of_exit_codes() -> list[str]:
    """How commands end, and what a person reads then where that is short; a line of the log as production has it."""
    ended: dict[str, list[str]] = {}
    words = Placeholders({})

    async def run(name: str, arguments: tuple[str, ...], variables: Mapping[str, object]) -> None:
        ran = await bcs(*arguments, **{**_USUAL, **variables})
        lines = ran.error.splitlines()
        ended[name] = [f"{name}: exit code {ran.exit_code}"]
        # The log is written by a thread, so its lines may come before the others or behind them.
        lines.sort(key=lambda line: not line.startswith("{"))
        logged = [line for line in lines if line.startswith("{")]
        for line in logged:
            ended[name] += lines_of(f"{name}: logs", words.document(json.loads(line)))
        said = lines[len(logged) :]
        ended[name] += [f"{name}: says: {line}" for line in said if len(said) <= _MOST_LINES]

    async with anyio.create_task_group() as group:
        for name, (arguments, variables) in _RUN.items():
            group.start_soon(run, name, arguments, variables)
    return [line for name in _RUN for line in ended[name]]


def _of_command(path: str, command: Any) -> Iterator[str]:
    yield path
    # Where a paragraph is broken into lines does not show.
    paragraphs = (command.help or "").strip().split("\n\n")
    yield from (f"{path}: help: {' '.join(paragraph.split())}" for paragraph in paragraphs if paragraph)
    for parameter in command.params:
        yield from _of_parameter(path, parameter)
    if hasattr(command, "list_commands"):
        context = command.context_class(command, info_name=path)
        for name in command.list_commands(context):
            yield from _of_command(f"{path} {name}", command.get_command(context, name))


def _of_parameter(path: str, parameter: Any) -> Iterator[str]:
    # An argument has no name outside but the one in the usage.
    option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if option else [parameter.metavar or parameter.name.upper()]
    document = {name: getattr(parameter, name, None) for name in _OF_PARAMETERS}
    default = document["default"]
    if isinstance(default, Enum):
        document["default"] = default.value
    yield f"{path} {'/'.join(names)}: {_kind(parameter.type_descriptor.annotation)}"
    yield from said_lines_of(f"{path} {names[0]}", document)


def _kind(annotation: Any) -> str:
    """A type as a caller sees it: the values that it may have, or its name."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(str(each.value) for each in annotation)
    return getattr(annotation, "__name__", "") if get_origin(annotation) is None else str(annotation)
