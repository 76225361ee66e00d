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


def _phases(flag: str, help_text: str, panel: str) -> Any:
    return typer.Option(flag, metavar="PHASE", help=help_text, rich_help_panel=panel, show_default=False)


Forced = Annotated[
    list[str] | None,
    _phases(
        "--force",
        "Run this phase although it is complete; `requested` or `all` for all phases that the pipeline lists, "
        "or all that it has. May be repeated.",
        _SELECT,
    ),
]
Until = Annotated[
    str | None, _phases("--until", "Leave out all but this phase and the phases that it requires.", _SELECT)
]
Only = Annotated[list[str] | None, _phases("--only", "Leave out all other phases. May be repeated.", _SELECT)]
Exclude = Annotated[list[str] | None, _phases("--exclude", "Leave out this phase. May be repeated.", _SELECT)]
AssumeCompleted = Annotated[
    list[str] | None, _phases("--assume-completed", "Take this phase for complete. May be repeated.", _WHAT_IF)
]
AssumeFailed = Annotated[
    list[str] | None, _phases("--assume-failed", "Take this phase for failed. May be repeated.", _WHAT_IF)
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
