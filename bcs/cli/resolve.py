"""`bcs resolve`: which phases of a pipeline a batch still needs, from the service or directly from the stores."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bcs.cli.known import read_known
from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, BatchId, ServiceUrl, single_command
from bcs.cli.output import plain, present, print_json, table
from bcs.cli.request_options import Exclude, Forced, Only, PipelineName, Until, fields_of
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.domain.progress import summarize
from bcs.domain.resolution import resolve, validate_request
from bcs.domain.resolve_options import ResolveOptions
from bcs.http.explanations import answer_with_options
from bcs.ops.asking import ask

_PATH = "/internal/v1/pipelines/define"
_MEMBERS = ("batch_id", "final_pipeline", "analysis_summary", "pruned_phases", "decisions")

app = single_command()


@app.command("resolve", rich_help_panel=PANEL)
def resolve_pipeline(
    batch_id: BatchId,
    pipeline: PipelineName,
    url: ServiceUrl = URL_OF_SETTINGS,
    prompt_attached: Annotated[
        bool | None,
        typer.Option(
            "--prompt-attached/--no-prompt-attached",
            help="Whether the batch has an essay prompt. [default: not part of the request]",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Read the stores in the BCS_* variables directly; announce nothing."),
    ] = False,
    force: Forced = None,
    until: Until = None,
    only: Only = None,
    exclude: Exclude = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be answered; announce and store nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Resolve a pipeline for a batch, announce its pruned phases, and show which phases are still to run and why.

    The running service answers, as it answers the orchestrator: it publishes a PhaseSkipped event for each pruned
    phase. With `--offline` this command reads Redis and the archive itself, and announces nothing.
    """
    fields = fields_of(force=force, until=until, only=only, exclude=exclude)
    if offline:
        answer = _from_the_store(batch_id, pipeline, prompt_attached, ResolveOptions.of(fields))
    else:
        if dry_run:
            fields["dry_run"] = True
        answer = _from_the_service(url, batch_id, pipeline, prompt_attached, fields)
    if as_json:
        print_json(answer)
    else:
        present(_page(answer))


def _from_the_service(
    url: str, batch_id: str, pipeline: str, prompt_attached: bool | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    correlation_id = str(uuid.uuid4())
    body: dict[str, Any] = {
        "batch_id": batch_id,
        "requested_pipeline": pipeline,
        "correlation_id": correlation_id,
        **fields,
    }
    if prompt_attached is not None:
        body["batch_metadata"] = {"prompt_attached": prompt_attached}
    answer = ask(f"{url}{_PATH}", body, expecting=_MEMBERS)
    announced = [] if answer.get("dry_run") else answer["pruned_phases"]
    return {"correlation_id": correlation_id, "announced_phases": announced, **answer}


def _from_the_store(
    batch_id: str, pipeline: str, prompt_attached: bool | None, options: ResolveOptions
) -> dict[str, Any]:
    settings = load_settings()
    definitions = pipelines_of(settings)
    validate_request(definitions, pipeline, prompt_attached=prompt_attached, options=options)
    law = definitions.law(require_registration=settings.require_registration)
    known = read_known(settings, batch_id, law)
    resolution = resolve(definitions, pipeline, summarize(known.state, law, known.version or 0), options)
    answer = answer_with_options(batch_id, resolution, known.source, options=options, dry_run=False)
    return {"correlation_id": None, "announced_phases": [], **answer}


def _page(answer: Mapping[str, Any]) -> RenderableType:
    decisions = table("phase", "decision", "reason")
    for decision in answer["decisions"]:
        left_out = decision["phase"] in answer.get("left_out_phases", ())
        pruned = Text("left out", "bright_black") if left_out else Text("pruned", "green")
        word = Text("run", "yellow") if decision["runs"] else pruned
        decisions.add_row(plain(decision["phase"]), word, plain(decision["reason"].replace("_", " ")))
    if answer["correlation_id"] is None:
        origin = "Read from the store; nothing was announced."
    elif answer.get("dry_run"):
        origin = "A dry run: nothing was announced or stored."
    else:
        announced = ", ".join(answer["announced_phases"]) or "nothing"
        origin = f"Correlation id {answer['correlation_id']}; announced as skipped: {announced}."
    return Group(
        Text.assemble("Batch ", plain(answer["batch_id"], "bold")),
        Text(),
        decisions,
        Text(),
        plain(answer["analysis_summary"]),
        plain(origin),
    )
