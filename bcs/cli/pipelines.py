"""`bcs pipelines`: lists and draws the defined pipelines, and checks or converts a file of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, ServiceUrl, command_group
from bcs.cli.output import plain, present, print_json, table
from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines, pipelines_of, pipelines_yaml
from bcs.domain.definitions_difference import difference
from bcs.domain.graphs import dot, mermaid, svg
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.errors import ConfigurationError, UnreadableConfiguration
from bcs.http.documents import definitions_version, difference_document, pipeline_document, pipelines_document
from bcs.http.parameters import PIPELINES, GraphFormat
from bcs.ops.asking import ask
from bcs.ops.wording import counted

EXIT_NOT_VALID = 1
EXIT_DIFFERENT = 1

app = command_group("pipelines")

PipelineFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A YAML file of pipelines.", show_default=False),
]
PipelineName = Annotated[
    str, typer.Argument(metavar="NAME", help="A pipeline's or a phase's name.", show_default=False)
]


_WRITERS: dict[GraphFormat, Callable[[Iterable[Phase]], str]] = {
    GraphFormat.MERMAID: mermaid,
    GraphFormat.DOT: dot,
    GraphFormat.SVG: svg,
}


@app.callback(rich_help_panel=PANEL)
def pipelines() -> None:
    """Show the pipelines, and check or convert a file of pipelines.

    The pipelines come from the file in BCS_PIPELINE_CONFIG_PATH, else from the file that is part of BCS.
    """


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List all names that can be requested: the pipelines and the phases, each with its phases in order."""
    definitions = _definitions()
    if as_json:
        print_json(pipelines_document(definitions))
        return
    listed = table("name", "kind", "phases in order")
    for name in definitions.names:
        order = ", ".join(phase.name for phase in definitions.plan(name))
        listed.add_row(plain(name), _kind(definitions, name), plain(order))
    present(listed)


@app.command()
def show(name: PipelineName, as_json: AsJson = False) -> None:
    """Show the phases of a pipeline in the order in which they run, with their dependencies."""
    definitions = _definitions()
    plan = definitions.plan(name)
    if as_json:
        print_json(pipeline_document(definitions, name))
        return
    tree = Tree(
        Text.assemble(plain(name, "bold"), f": {_kind(definitions, name)}, {counted(len(plan), 'phase')} in order")
    )
    for position, phase in enumerate(plan, 1):
        branch = tree.add(Text.assemble(f"{position}. ", plain(phase.name, "bold")))
        branch.add(plain(f"requires: {', '.join(phase.requires) or 'nothing'}"))
        if phase.complete_when is not CompleteWhen.EVERY_ESSAY_COMPLETED:
            branch.add(plain(f"complete when {phase.complete_when.replace('_', ' ')}"))
        if phase.needs_prompt:
            branch.add("refused without a prompt")
        if phase.rerun_with_dependencies:
            branch.add("runs again when a phase that it requires runs again")
        if phase.revision is not None:
            branch.add(plain(f"revision: {phase.revision}"))
        if phase.rerun_when_changed:
            branch.add(plain(f"runs again when its definition changes, now {phase.definition}"))
    present(tree)


@app.command()
def validate(file: PipelineFile, as_json: AsJson = False) -> None:
    """Check a file of pipelines as the service does at its start. Exits 0 if it is valid, 1 if not."""
    try:
        definitions = load_pipelines(file)
    except ConfigurationError as error:
        problems = error.problems if isinstance(error, UnreadableConfiguration) else (str(error),)
        if as_json:
            print_json({"file": str(file), "valid": False, "problems": problems})
        else:
            present(Text.assemble(plain(file), ": ", ("not valid", "red")))
            for problem in problems:
                present(plain(f"  {problem}"))
        raise typer.Exit(EXIT_NOT_VALID) from None
    if as_json:
        print_json({"file": str(file), "valid": True, "problems": []})
        return
    phases, others = len(definitions.phases), len(definitions.pipelines)
    counts = f", {counted(phases, 'phase')} and {counted(others, 'pipeline')}"
    present(Text.assemble(plain(file), ": ", ("valid", "green"), counts))


@app.command()
def diff(file: PipelineFile, as_json: AsJson = False) -> None:
    """Show what a file of pipelines would change, compared with the present pipelines. Exits 1 if it changes anything.

    The order of a file counts only where it changes the order in which phases run.
    """
    found = difference(_definitions(), load_pipelines(file))
    sentences = list(found.sentences())
    if as_json:
        document = {"before": definitions_version(found.before), "after": definitions_version(found.after)}
        print_json({**document, **difference_document(found)})
    elif not sentences:
        present(Text.assemble(plain(file), ": no difference, ", plain(found.after)))
    else:
        present(Text.assemble(plain(file), ": ", plain(found.after), ", before ", plain(found.before)))
        for sentence in sentences:
            present(plain(f"  {sentence}"))
    if sentences:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command("reload")
def reload_service(url: ServiceUrl = URL_OF_SETTINGS, as_json: AsJson = False) -> None:
    """Let the running service read its pipeline file again, and show what has changed. Each replica has to be asked.

    A file that is not valid changes nothing, and is refused with exit code 1.
    """
    answer = ask(f"{url}{PIPELINES}/reload", {}, expecting=("status", "definitions", "changes"))
    if as_json:
        print_json(answer)
        return
    present(Text.assemble(plain(answer["status"]), ": ", plain(_named(answer["definitions"]))))
    for sentence in answer["changes"]:
        present(plain(f"  {sentence}"))


@app.command()
def convert(file: PipelineFile) -> None:
    """Convert a file of pipelines, such as the platform's with its `steps`, to BCS's format, and print it.

    The service reads both formats. Descriptions, services and event types of the platform's file are left out, because
    BCS does not use them.
    """
    typer.echo(pipelines_yaml(load_pipelines(file)), nl=False)


@app.command()
def graph(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A pipeline or a phase. [default: all phases]", show_default=False),
    ] = None,
    form: Annotated[GraphFormat, typer.Option("--format", help="The language of the graph.")] = GraphFormat.MERMAID,
) -> None:
    """Print phases and their dependencies as a graph: text for Mermaid or Graphviz, or an SVG picture."""
    definitions = _definitions()
    phases = definitions.phases.values() if name is None else definitions.plan(name)
    typer.echo(_WRITERS[form](phases))


def _definitions() -> PipelineDefinitions:
    return pipelines_of(load_settings())


def _named(definitions: Mapping[str, str | None]) -> str:
    return " ".join(part for part in (definitions["version"], definitions["hash"]) if part)


def _kind(definitions: PipelineDefinitions, name: str) -> str:
    return "pipeline" if name in definitions.pipelines else "phase"
