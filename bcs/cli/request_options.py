"""The options of a request about a pipeline: what to force, leave out and assume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from bcs.domain.resolve_options import Force
from bcs.errors import UnreadableConfiguration, os_reason

_SELECT = "Selecting phases"
_WHAT_IF = "What if"

PipelineName = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline's or a phase's name.", show_default=False)
]
Forced = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="PHASE",
        help="Run this phase although it is complete; `requested` or `all` for all phases that the pipeline lists, "
        "or all that it has. May be repeated.",
        rich_help_panel=_SELECT,
        show_default=False,
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="PHASE",
        help="Leave out all but this phase and the phases that it requires.",
        rich_help_panel=_SELECT,
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PHASE",
        help="Leave out all other phases. May be repeated.",
        rich_help_panel=_SELECT,
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PHASE",
        help="Leave out this phase. May be repeated.",
        rich_help_panel=_SELECT,
        show_default=False,
    ),
]
AssumeCompleted = Annotated[
    list[str] | None,
    typer.Option(
        "--assume-completed",
        metavar="PHASE",
        help="Take this phase for complete. May be repeated.",
        rich_help_panel=_WHAT_IF,
        show_default=False,
    ),
]
AssumeFailed = Annotated[
    list[str] | None,
    typer.Option(
        "--assume-failed",
        metavar="PHASE",
        help="Take this phase for failed. May be repeated.",
        rich_help_panel=_WHAT_IF,
        show_default=False,
    ),
]
Definitions = Annotated[
    Path | None,
    typer.Option(
        "--definitions",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Use the phases and pipelines of this file instead of those of the service.",
        rich_help_panel=_WHAT_IF,
        show_default=False,
    ),
]


def fields_of(
    *,
    force: list[str] | None = None,
    until: str | None = None,
    only: list[str] | None = None,
    exclude: list[str] | None = None,
    assume_completed: list[str] | None = None,
    assume_failed: list[str] | None = None,
    definitions: Path | None = None,
) -> dict[str, Any]:
    """The fields of a request body; an option that was not given is left out."""
    given: dict[str, Any] = {
        "force": _force(force),
        "until": until,
        "only": only,
        "exclude": exclude,
        "assume_completed": assume_completed,
        "assume_failed": assume_failed,
        "definitions": None if definitions is None else _document(definitions),
    }
    return {name: value for name, value in given.items() if value}


def _force(given: list[str] | None) -> str | list[str] | None:
    if given and len(given) == 1 and given[0] in set(Force):
        return given[0]
    return given


def _document(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableConfiguration(str(path), os_reason(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnreadableConfiguration(str(path), " ".join(str(error).split())) from None
