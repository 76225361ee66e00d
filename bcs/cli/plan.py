"""`bcs plan`: what a pipeline would run for many batches, summed up."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, ServiceUrl, single_command
from bcs.cli.output import plain, present, print_json, table
from bcs.cli.request_options import (
    AssumeCompleted,
    AssumeFailed,
    Definitions,
    Exclude,
    Forced,
    Only,
    Until,
    fields_of,
)
from bcs.errors import UnreadableConfiguration, os_reason
from bcs.http.requests import MOST_PLANNED
from bcs.ops.asking import ask_lines
from bcs.ops.wording import counted, printable

EXIT_INCOMPLETE = 1

_PATH = "/internal/v1/pipelines/plan"
_STANDARD_INPUT = Path("-")
_LISTED = 20

app = single_command()


@app.command("plan", rich_help_panel=PANEL)
def plan_pipeline(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The ids of the batches, one in each line. [default: -, standard input]",
            show_default=False,
        ),
    ] = _STANDARD_INPUT,
    *,
    pipeline: Annotated[
        str,
        typer.Option("--pipeline", metavar="PIPELINE", help="A pipeline's or a phase's name.", show_default=False),
    ],
    url: ServiceUrl = URL_OF_SETTINGS,
    force: Forced = None,
    until: Until = None,
    only: Only = None,
    exclude: Exclude = None,
    assume_completed: AssumeCompleted = None,
    assume_failed: AssumeFailed = None,
    definitions: Definitions = None,
    as_json: AsJson = False,
) -> None:
    """Show which phases of a pipeline would run for many batches, and for how many essays, without any effect.

    The running service answers for up to 1,000 batches at a time. Exits 1 if there is no answer for some of them.
    """
    batch_ids = _batch_ids(file)
    if not batch_ids:
        raise typer.BadParameter("it has no batch ids", param_hint="FILE")
    fields = fields_of(
        force=force,
        until=until,
        only=only,
        exclude=exclude,
        assume_completed=assume_completed,
        assume_failed=assume_failed,
        definitions=definitions,
    )
    plans: list[dict[str, Any]] = []
    totals: dict[str, Any] = {}
    for start in range(0, len(batch_ids), MOST_PLANNED):
        some = batch_ids[start : start + MOST_PLANNED]
        body = {"batch_ids": some, "requested_pipeline": pipeline, **fields}
        *lines, last = ask_lines(f"{url}{_PATH}", body, expecting=("totals",))
        plans += lines
        totals = _added(totals, last["totals"]) if totals else last["totals"]
    if as_json:
        print_json({"batches": plans, "totals": totals})
    else:
        present(_page(plans, totals))
    if totals["failed"]:
        raise typer.Exit(EXIT_INCOMPLETE)


def _batch_ids(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if file == _STANDARD_INPUT else file.read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableConfiguration(str(file), os_reason(error)) from None
    except UnicodeDecodeError:
        raise UnreadableConfiguration(str(file), "it is not UTF-8 text") from None
    return [batch_id for line in text.splitlines() if (batch_id := line.strip())]


def _added(totals: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The totals of two parts of the batches."""
    added: dict[str, Any] = {}
    for name, value in totals.items():
        if isinstance(value, dict):
            added[name] = _added(value, more[name])
        else:
            added[name] = value if isinstance(value, str) else value + more[name]
    return added


def _page(plans: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> RenderableType:
    numbers = ("runs for", "pruned for", "essays", "outstanding")
    left_out = any(of_phase["left_out"] for of_phase in totals["phases"].values())
    columns = (*numbers, "left out for") if left_out else numbers
    phases = table("phase", *columns, right=columns)
    for name, of_phase in totals["phases"].items():
        figures = [of_phase[each] for each in ("runs", "pruned", "essays", "outstanding")]
        figures += [of_phase["left_out"]] if left_out else []
        phases.add_row(plain(name), *map(str, figures))
    unknown = f"{totals['unknown']} {'is' if totals['unknown'] == 1 else 'are'} unknown"
    parts: list[RenderableType] = [
        Text.assemble(
            f"{counted(totals['batches'], 'batch', 'batches')} planned for ",
            plain(totals["pipeline"], "bold"),
            f": nothing is to run for {totals['nothing_to_run']}, and {unknown}",
        ),
        Text(),
        phases,
    ]
    failed = [one for one in plans if "problem" in one]
    if failed:
        parts += [Text(), Text(f"There is no answer for {counted(len(failed), 'batch', 'batches')}:", "yellow")]
        parts += [Text(f"  {printable(one['batch_id'])}: {one['problem']['detail']}") for one in failed[:_LISTED]]
        if len(failed) > _LISTED:
            parts.append(Text(f"  and {len(failed) - _LISTED} more, which --json lists"))
    return Group(*parts)
