"""`bcs explain`: why each phase of a pipeline runs or not, and what would be if."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, BatchId, ServiceUrl, single_command
from bcs.cli.output import plain, present, print_json
from bcs.cli.request_options import (
    AssumeCompleted,
    AssumeFailed,
    Definitions,
    Exclude,
    Forced,
    Only,
    PipelineName,
    Until,
    fields_of,
)
from bcs.http.parameters import MOST_ESSAYS, explain_path, explained_essays_path
from bcs.ops.asking import ask
from bcs.ops.wording import counted

DEFINE_PATH = "/internal/v1/pipelines/define"
_MEMBERS = ("batch_id", "final_pipeline", "pruned_phases", "explanation")
_WORDS = {"run": ("runs", "yellow"), "prune": ("is pruned", "green"), "leave_out": ("is left out", "bright_black")}

app = single_command()


@app.command("explain", rich_help_panel=PANEL)
def explain_pipeline(
    batch_id: BatchId,
    pipeline: PipelineName,
    url: ServiceUrl = URL_OF_SETTINGS,
    force: Forced = None,
    until: Until = None,
    only: Only = None,
    exclude: Exclude = None,
    assume_completed: AssumeCompleted = None,
    assume_failed: AssumeFailed = None,
    definitions: Definitions = None,
    full: Annotated[
        bool, typer.Option("--full", help="List the standing of every essay in each phase, with --json.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain which phases of a pipeline a batch still needs: each decision, the essays, and the event that decided.

    The running service answers, and nothing changes: no phase is announced as skipped, and the history gets no entry.
    """
    fields = fields_of(
        force=force,
        until=until,
        only=only,
        exclude=exclude,
        assume_completed=assume_completed,
        assume_failed=assume_failed,
        definitions=definitions,
    )
    if full and fields:
        raise typer.BadParameter("it explains the pipeline as it is, without other options", param_hint="--full")
    if fields:
        body = {"batch_id": batch_id, "requested_pipeline": pipeline, "correlation_id": str(uuid.uuid4())}
        answer = ask(f"{url}{DEFINE_PATH}", {**body, "dry_run": True, "explain": True, **fields}, expecting=_MEMBERS)
    elif full:
        answer = _with_all_essays(url, batch_id, pipeline)
    else:
        answer = ask(f"{url}{explain_path(batch_id, pipeline)}", expecting=_MEMBERS)
    if as_json:
        print_json(answer)
    else:
        present(explained_page(answer, pipeline))


def _with_all_essays(url: str, batch_id: str, pipeline: str) -> dict[str, Any]:
    """The explanation with the essays of all pages.

    The counts are those of the first page: the batch may change while the pages are read.
    """
    path: str | None = f"{explain_path(batch_id, pipeline)}?explain=full&limit={MOST_ESSAYS}"
    answer: dict[str, Any] | None = None
    while path is not None:
        page = ask(f"{url}{path}", expecting=_MEMBERS)
        if answer is None:
            answer = page
        else:
            for first, more in zip(answer["explanation"]["phases"], page["explanation"]["phases"], strict=True):
                first["essays"] += more["essays"]
        last = [phase["essays"][-1]["essay_id"] for phase in page["explanation"]["phases"] if phase["essays"]]
        ended = page["explanation"]["next"] is None or not last
        path = None if ended else explained_essays_path(batch_id, pipeline, MOST_ESSAYS, last[0])
    assert answer is not None  # noqa: S101 (the first page was read)
    answer["explanation"]["next"] = None
    return answer


def explained_page(answer: Mapping[str, Any], pipeline: str) -> RenderableType:
    """An explained answer, for a person."""
    explanation, phases = answer["explanation"], answer["explanation"]["phases"]
    expected = f"{answer['essays_expected']} expected" if answer["registered"] else "not registered"
    known = counted(answer["essays_known"], "essay")
    runs = len(answer["final_pipeline"])
    parts: list[RenderableType] = [
        Text.assemble("Batch ", plain(answer["batch_id"], "bold"), f": {known} known, {expected}"),
        Text.assemble("Pipeline ", plain(pipeline, "bold"), f": {runs} of {counted(len(phases), 'phase')} to run"),
    ]
    for phase in phases:
        word, colour = _WORDS[phase["decision"]]
        prefix = f"{phase['phase']} {word}: "
        heading = Text.assemble(plain(phase["phase"], "bold"), " ", (word, colour))
        parts += [Text(), heading, _indented(phase["sentence"].removeprefix(prefix))]
        parts += [_indented(line) for line in _decided(phase["decided_by"])]
    as_of = explanation["as_of"]
    parts.append(Text())
    if as_of["seconds_behind"] is None:
        parts.append(Text("How far the intake is behind is not known yet."))
    elif not as_of["events_behind"] and not as_of["seconds_behind"]:
        parts.append(Text("When this was read, no event waited to be read."))
    else:
        events = counted(as_of["events_behind"], "event")
        parts.append(Text(f"When this was read, {events} waited to be read, for {as_of['seconds_behind']:.0f} s."))
    if explanation["archive"] == "unavailable":
        parts.append(Text("The archive did not answer, so the events behind the facts are not named.", "yellow"))
    return Group(*parts)


def _decided(fact: Mapping[str, Any] | None) -> list[str]:
    if fact is None or fact["archived"] is None:
        return []
    archived, source = fact["archived"], fact["archived"]["source"]
    if source is None:
        origin = f"over HTTP, by {archived['reported_by'] or 'an unknown caller'}"
    else:
        origin = f"from {source['topic']}/{source['partition']}/{source['offset']}"
    event = f", event id {archived['event_id']}" if archived["event_id"] else ""
    return [
        f"decided by {archived['event_type']}{event}, {origin}",
        f"  received at {archived['recorded_at']}, number {archived['number']} of the history",
    ]


def _indented(line: str) -> RenderableType:
    return Padding(plain(line), (0, 0, 0, 2), expand=False)
