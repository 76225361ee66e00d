"""`bcs batches erase`: erases a batch from the stores and the dead-letter topics, after a confirmation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bcs.cli.options import URL_OF_SETTINGS, AsJson, BatchId, ServiceUrl
from bcs.cli.output import plain, present, print_json, table
from bcs.config.loading import load_settings
from bcs.errors import KafkaUnavailable
from bcs.http.parameters import MOST_REASON_CHARACTERS, erasure_path
from bcs.ops.asking import ask
from bcs.ops.wording import counted
from bcs.runtime import running

if TYPE_CHECKING:
    from bcs.ops.dlq.erasing import DeadLettersToErase, ErasedDeadLetters

_MEMBERS = ("batch_id", "dry_run", "removed", "left")
_LISTED = 20
_FAILED = 1


def erase(
    batch_id: BatchId,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="The reason, which is kept.", show_default=False)
    ],
    url: ServiceUrl = URL_OF_SETTINGS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what there is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a batch for good, after a confirmation: by law, for example.

    The running service erases it from Redis, PostgreSQL and the queues, and drops its events for
    BCS_ERASED_BATCHES_SECONDS. This command deletes its dead letters in Kafka, or lists those that Kafka can't delete.
    An entry with operator, time and reason is kept. Exits with 1 if dead letters are left; the command can be repeated.
    """
    reason = reason.strip()
    if not 1 <= len(reason) <= MOST_REASON_CHARACTERS:
        raise typer.BadParameter(f"it has 1 to {MOST_REASON_CHARACTERS} characters", param_hint="--reason")
    # BCS prints each error once, in its own line.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if dry_run or not yes:
        found = ask(f"{url}{erasure_path(batch_id, reason, dry_run=True)}", expecting=_MEMBERS, method="DELETE")
        dead_letters, problem = _found_dead_letters(batch_id)
        if dry_run and as_json:
            print_json({**found, "dead_letters": dead_letters, "dead_letters_problem": problem})
            return
        if not as_json:
            present(_there_is(found, dead_letters, problem))
        if dry_run:
            return
        typer.confirm("Erase it for good?", abort=True, err=as_json)
    answer = ask(f"{url}{erasure_path(batch_id, reason, dry_run=False)}", expecting=_MEMBERS, method="DELETE")
    erased, problem = _erased_dead_letters(batch_id)
    if as_json:
        print_json(_document(answer, erased, problem))
    else:
        present(_result(answer, erased, problem))
    if problem or (erased and (erased.unread or not all(each.goes for each in erased.left))):
        raise typer.Exit(_FAILED)


def _found_dead_letters(batch_id: str) -> tuple[int | None, str | None]:
    """How many dead letters there are, or why that is unknown."""
    from bcs.ops.dlq.erasing import read_dead_letters

    try:
        found: DeadLettersToErase = running.run(read_dead_letters, load_settings(), batch_id)
    except KafkaUnavailable as error:
        return None, str(error)
    return len(found.ours), None


def _erased_dead_letters(batch_id: str) -> tuple[ErasedDeadLetters | None, str | None]:
    """What became of the dead letters, or why that is unknown."""
    from bcs.ops.dlq.erasing import erase_dead_letters

    try:
        return running.run(erase_dead_letters, load_settings(), batch_id), None
    except KafkaUnavailable as error:
        return None, f"the dead letters are not erased: {error}; repeat the command"


def _document(answer: Mapping[str, Any], erased: ErasedDeadLetters | None, problem: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"deleted": [], "left": [], "unread": [], "problem": problem}
    if erased:
        found["deleted"] = list(map(str, erased.deleted))
        found["left"] = [{"position": str(each.position), "why": each.why, "goes": each.goes} for each in erased.left]
        found["unread"] = list(erased.unread)
    return {**answer, "left": _left(answer), "dead_letters": found}


def _left(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # What the service can't do with dead letters, this command does.
    return [each for each in answer["left"] if each["what"] != "dead_letters"]


def _there_is(found: Mapping[str, Any], dead_letters: int | None, problem: str | None) -> RenderableType:
    parts: list[RenderableType] = [
        Text.assemble("Batch ", plain(found["batch_id"], "bold"), ": there is"),
        Text(),
        _removed(found["removed"], dead_letters, []),
    ]
    if problem:
        parts += [Text(), plain(f"Dead letters: {problem}")]
    return Group(*parts, Text())


def _result(answer: Mapping[str, Any], erased: ErasedDeadLetters | None, problem: str | None) -> RenderableType:
    deleted = len(erased.deleted) if erased else None
    parts: list[RenderableType] = [
        Text.assemble("Batch ", plain(answer["batch_id"], "bold"), f": erased by {answer['erased_by']}"),
        plain(f"Events about it are dropped until {answer['refused_until']}."),
        Text(),
        _removed(answer["removed"], deleted, ["nothing was there any more"]),
        Text(),
        Text("What is left:"),
    ]
    lines = [f"{each['what'].replace('_', ' ')}: {each['why']}" for each in _left(answer)]
    if erased:
        lines += [f"dead letter {each.position}: {each.why}" for each in erased.left[:_LISTED]]
        if len(erased.left) > _LISTED:
            lines.append(f"{counted(len(erased.left) - _LISTED, 'more dead letter')}, which --json lists")
        lines += [f"dead letters: {each}" for each in erased.unread]
    lines += [problem] if problem else []
    return Group(*parts, *(Padding(plain(line), (0, 0, 0, 2), expand=False) for line in lines))


def _removed(removed: Sequence[Mapping[str, Any]], dead_letters: int | None, nothing: Sequence[str]) -> RenderableType:
    rows = [(each["place"], each["what"].replace("_", " "), str(each["count"])) for each in removed]
    if dead_letters:
        rows.append(("kafka", "dead letters", str(dead_letters)))
    if not rows:
        return plain(next(iter(nothing), "nothing"))
    counts = table("place", "what", "count", right=("count",))
    for row in rows:
        counts.add_row(*map(plain, row))
    return counts
