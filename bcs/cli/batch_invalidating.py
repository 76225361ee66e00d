"""`bcs batches invalidate`: takes completions of a batch back, after a confirmation."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bcs.cli.options import URL_OF_SETTINGS, AsJson, BatchId, ServiceUrl
from bcs.cli.output import plain, present, print_json, table
from bcs.http.parameters import invalidate_path
from bcs.ops.asking import ask
from bcs.ops.wording import counted, printable

_MEMBERS = ("batch_id", "dry_run", "phases", "no_longer_complete")
_LISTED = 20


def invalidate(
    batch_id: BatchId,
    phase: Annotated[
        list[str], typer.Option("--phase", metavar="NAME", help="A phase; may be repeated.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, for the history.")],
    essay: Annotated[
        list[str] | None,
        typer.Option(
            "--essay",
            metavar="ESSAY",
            help="Only this essay; may be repeated. [default: all essays]",
            show_default=False,
        ),
    ] = None,
    url: ServiceUrl = URL_OF_SETTINGS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken back.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take completions of phases back, after a confirmation, so that these phases run again.

    The running service does it. Events that are older than the time of the command no longer count for these phases,
    also events that arrive later. A newer completion counts again. The history of the batch has the operator and the
    reason.
    """
    if not reason.strip():
        raise typer.BadParameter("a reason is required", param_hint="--reason")
    # The id under which the history and the log have the change.
    correlation_id = str(uuid.uuid4())
    order: dict[str, Any] = {"phases": phase, "reason": reason.strip(), "correlation_id": correlation_id}
    if essay:
        order["essays"] = essay
    target = f"{url}{invalidate_path(batch_id)}"
    answer: Mapping[str, Any] = {}
    if dry_run or not yes:
        answer = ask(target, {**order, "dry_run": True}, expecting=_MEMBERS)
    if not dry_run:
        if not yes:
            if as_json:
                typer.echo(_summary(answer), err=True)
            else:
                present(_page(answer))
            typer.confirm("Take this back?", abort=True, err=as_json)
        answer = ask(target, order, expecting=_MEMBERS)
    if as_json:
        print_json({"correlation_id": correlation_id, **answer})
    elif dry_run:
        present(Group(_page(answer), plain("Nothing was changed.")))
    elif yes:
        present(Group(_page(answer), plain(f"Correlation id {correlation_id}.")))
    else:
        present(plain(f"{_summary(answer)} Correlation id {correlation_id}."))


def _summary(answer: Mapping[str, Any]) -> str:
    taken = "; ".join(f"{printable(each['phase'])}: {_counts(each)}" for each in answer["phases"])
    return f"{'Would be taken back' if answer['dry_run'] else 'Taken back'}: {taken}."


def _counts(taken_back: Mapping[str, Any]) -> str:
    parts = [counted(taken_back["completed"], "completion")]
    if taken_back["failed"]:
        parts.append(counted(taken_back["failed"], "failure"))
    if taken_back["report"]:
        parts.append("the phase report")
    if taken_back["outcome"]:
        parts.append("the outcome")
    return ", ".join(parts)


def _page(answer: Mapping[str, Any]) -> RenderableType:
    columns = ("completions", "failures")
    counts = table("phase", "progress", *columns, right=columns)
    for each in answer["phases"]:
        counts.add_row(plain(each["phase"]), plain(_progress(each)), str(each["completed"]), str(each["failed"]))
    count = "would be taken back" if answer["dry_run"] else "taken back"
    parts: list[RenderableType] = [
        Text.assemble("Batch ", plain(answer["batch_id"], "bold"), f": {count}"),
        Text(),
        counts,
        Text(),
    ]
    for each in answer["phases"]:
        parts += _marks(each)
    ended = ", ".join(answer["no_longer_complete"])
    parts.append(plain(f"No longer complete: {ended}." if ended else "No phase that is complete becomes incomplete."))
    return Group(*parts)


def _progress(taken_back: Mapping[str, Any]) -> str:
    if taken_back["complete"]:
        return "still complete"
    return "no longer complete" if taken_back["was_complete"] else "not complete"


def _marks(taken_back: Mapping[str, Any]) -> Sequence[RenderableType]:
    phase, report, outcome = taken_back["phase"], taken_back["report"], taken_back["outcome"]
    lines: list[str] = []
    if report:
        lines.append(f"the phase report of {report['at']} ({report['outcome']})")
    if outcome:
        lines.append(f"the outcome of {outcome['at']} ({outcome['status']})")
    lines += [f"{essay['essay_id']}: {essay['outcome']} at {essay['at']}" for essay in taken_back["essays"][:_LISTED]]
    more = taken_back["completed"] + taken_back["failed"] - _LISTED
    if more > 0:
        lines.append(f"and {counted(more, 'more essay', 'more essays')}")
    if not lines:
        return [Text.assemble(plain(phase, "bold"), ": nothing of it counts now"), Text()]
    return [
        Text.assemble(plain(phase, "bold"), f", all that is older than {taken_back['at']}:"),
        *(Padding(plain(line), (0, 0, 0, 2), expand=False) for line in lines),
        Text(),
    ]
