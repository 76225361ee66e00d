"""`bcs plan`: what a pipeline would run for many batches, summed up."""

from __future__ import annotations

import json
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
from bcs.cli.times import TIME_HELP, checked_age, checked_time
from bcs.domain.finding import Condition
from bcs.errors import UnreadableConfiguration, os_reason
from bcs.http.parameters import USUAL_STALE_SECONDS
from bcs.http.plan_requests import MOST_PLANNED
from bcs.ops.asking import ask_lines
from bcs.ops.wording import counted, printable

EXIT_INCOMPLETE = 1

_PATH = "/internal/v1/pipelines/plan"
_STANDARD_INPUT = Path("-")
_LISTED = 20

app = single_command()


_SELECTED = "Selecting batches"


@app.command("plan", rich_help_panel=PANEL)
def plan_pipeline(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The ids of the batches, one in each line; - is standard input. [default: -, without a selection]",
            show_default=False,
        ),
    ] = None,
    *,
    pipeline: Annotated[
        str,
        typer.Option("--pipeline", metavar="PIPELINE", help="A pipeline's or a phase's name.", show_default=False),
    ],
    url: ServiceUrl = URL_OF_SETTINGS,
    every: Annotated[
        bool, typer.Option("--all", help="All batches that the service finds.", rich_help_panel=_SELECTED)
    ] = False,
    state: Annotated[
        Condition | None,
        typer.Option(
            "--state",
            help="Only batches in this state; the phases of the pipeline count for it.",
            show_default=False,
            rich_help_panel=_SELECTED,
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase",
            metavar="PHASE",
            help="Only this phase counts for the state; without --state, only batches with facts about it.",
            show_default=False,
            rich_help_panel=_SELECTED,
        ),
    ] = None,
    changed_since: Annotated[
        str | None,
        typer.Option(
            "--changed-since",
            metavar="TIME",
            callback=checked_time,
            help=f"Only batches that changed then or later: {TIME_HELP}.",
            show_default=False,
            rich_help_panel=_SELECTED,
        ),
    ] = None,
    changed_until: Annotated[
        str | None,
        typer.Option(
            "--changed-until",
            metavar="TIME",
            callback=checked_time,
            help="Only batches that changed last then or earlier.",
            show_default=False,
            rich_help_panel=_SELECTED,
        ),
    ] = None,
    stale_after: Annotated[
        str,
        typer.Option(
            "--stale-after",
            metavar="AGE",
            callback=checked_age,
            help="With --state stale: so long without a change.",
            rich_help_panel=_SELECTED,
        ),
    ] = f"{USUAL_STALE_SECONDS // 3600}h",
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

    The batches are those of FILE, or those that the service finds by a selection. The running service answers for up
    to 1,000 batches at a time. Exits 1 if there is no answer for some of them.
    """
    selection: dict[str, Any] = {
        "state": state,
        "phase": phase,
        # Which phases count for a state. Alone it would leave out batches without facts about them.
        "pipeline": pipeline if state is not None and phase is None else None,
        "since": changed_since,
        "until": changed_until,
    }
    selection = {name: value for name, value in selection.items() if value is not None}
    fields = {
        "requested_pipeline": pipeline,
        **fields_of(
            force=force,
            until=until,
            only=only,
            exclude=exclude,
            assume_completed=assume_completed,
            assume_failed=assume_failed,
            definitions=definitions,
        ),
    }
    if every or selection:
        if file is not None:
            raise typer.BadParameter("it can't be given together with a selection", param_hint="FILE")
        plans, sums = _selected(f"{url}{_PATH}", {**selection, "stale_seconds": int(stale_after)}, fields)
    else:
        batch_ids = _batch_ids(file or _STANDARD_INPUT)
        if not batch_ids:
            raise typer.BadParameter("it has no batch ids", param_hint="FILE")
        plans, sums = _listed(f"{url}{_PATH}", batch_ids, fields)
    if as_json:
        print_json({"batches": plans, "totals": sums})
    else:
        present(_page(plans, sums))
    if sums["failed"]:
        raise typer.Exit(EXIT_INCOMPLETE)


def _listed(
    url: str, batch_ids: Sequence[str], fields: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """The plans of batches, and the totals."""
    lines: list[bytes] = []
    last: dict[str, Any] = {}
    for start in range(0, len(batch_ids), MOST_PLANNED):
        some, last = ask_lines(
            url, {"batch_ids": batch_ids[start : start + MOST_PLANNED], **fields}, expecting=("totals",)
        )
        lines += some
    plans = [json.loads(line) for line in lines]
    return plans, _totals(plans, last["totals"])


def _selected(
    url: str, selection: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """The plans of all batches that the service finds, and the totals.

    A batch that changes meanwhile may be on two pages; the last plan counts.
    """
    found: dict[str, bytes] = {}
    cursor: dict[str, str] = {}
    while True:
        lines, last = ask_lines(
            url, {"selection": {**selection, **cursor}, **fields}, expecting=("totals", "selection")
        )
        for line in lines:
            found[json.loads(line)["batch_id"]] = line
        following = last["selection"]["next_cursor"]
        if following is None:
            plans = [json.loads(line) for line in found.values()]
            return plans, _totals(plans, last["totals"])
        cursor = {"cursor": following}


def _batch_ids(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if file == _STANDARD_INPUT else file.read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableConfiguration(str(file), os_reason(error)) from None
    except UnicodeDecodeError:
        raise UnreadableConfiguration(str(file), "it is not UTF-8 text") from None
    return [batch_id for line in text.splitlines() if (batch_id := line.strip())]


def _totals(plans: Sequence[Mapping[str, Any]], of_page: Mapping[str, Any]) -> dict[str, Any]:
    """The totals of all plans, as the service has them for a part of them.

    :param of_page: the totals of a part.
    """
    phases = {name: dict.fromkeys(of_phase, 0) for name, of_phase in of_page["phases"].items()}
    answered = [one for one in plans if "problem" not in one]
    for one in answered:
        essays = max(one["essays_known"], one["essays_expected"] or 0)
        for name, outstanding in one["outstanding"].items():
            phases[name]["runs"] += 1
            phases[name]["essays"] += essays
            phases[name]["outstanding"] += outstanding
        for name in one["pruned_phases"]:
            phases[name]["pruned"] += 1
        for name in one["left_out_phases"]:
            phases[name]["left_out"] += 1
    return {
        "pipeline": of_page["pipeline"],
        "batches": len(plans),
        "unknown": sum(not one.get("known", True) for one in plans),
        "nothing_to_run": sum(not one["final_pipeline"] for one in answered),
        "failed": len(plans) - len(answered),
        "phases": phases,
    }


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
