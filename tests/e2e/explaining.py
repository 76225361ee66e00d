"""Each case of docs/explaining.md with the answer of a running service: `python -m tests.e2e.explaining` writes it."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from tests.support.commands import bcs
from tests.support.events import Event, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until
from tests.surface.scenario import Servers
from tests.surface.servers import embedded_servers

DOCUMENT = Path(__file__).parents[2] / "docs" / "explaining.md"

_THREE = ["anna", "ben", "cleo"]
_RERUN = "{phases: [{name: spellcheck}, {name: nlp, requires: [spellcheck], rerun_with_dependencies: true}]}"
# The definitions of the service.
_IN_USE = """\
phases:
  - {name: spellcheck}
  - {name: nlp, requires: [spellcheck]}
  - {name: ai_feedback, requires: [spellcheck], rerun_when_changed: true}
"""
_CHANGED = """\
phases:
  - {name: spellcheck}
  - {name: ai_feedback, requires: [spellcheck], rerun_when_changed: true, revision: 2}\
"""
_SETTLED = "{phases: [{name: spellcheck, complete_when: every_essay_settled}]}"


@dataclass(frozen=True, slots=True)
class Case:
    """A batch, and a command about it.

    :param told: what happened to the batch.
    :param steps: events that are sent together (made only then, for their times), or a phase and True: a phase report.
    :param command: the command, without the URL; `BATCH` stands for the id of the batch.
    :param shows: a part of the output, without which the case is wrong.
    :param definitions: the text of `draft.yaml`.
    :param given: the input of the command.
    """

    title: str
    told: str
    steps: Sequence[Sequence[Event] | Callable[[], Sequence[Event]] | tuple[str, bool]]
    command: str
    shows: str
    exit_code: int = 0
    definitions: str = ""
    given: str = ""


def _checked(batch: str, essays: Sequence[str] = _THREE) -> list[Event]:
    return [spellchecked(batch, essay) for essay in essays]


def cases() -> list[Case]:
    """All cases, each with a batch of its own, whose id is its number."""
    return [
        Case(
            "Never recorded",
            "Nothing is known of the batch.",
            [],
            "explain b1 spellcheck",
            "nothing was ever recorded about it",
        ),
        Case(
            "Essays are missing",
            "Three essays are registered, and two are spellchecked.",
            [[registered("b2", _THREE)], _checked("b2", _THREE[:2])],
            "explain b2 spellcheck",
            "2 of 3 essays completed it; missing: cleo",
        ),
        Case(
            "Essays failed",
            "The spellcheck of one essay failed.",
            [[registered("b3", _THREE)], [*_checked("b3", _THREE[:2]), spellchecked("b3", "cleo", status="failed")]],
            "explain b3 nlp",
            "failed: cleo",
        ),
        Case(
            "Not in the outcome",
            "All essays are spellchecked, and the outcome of nlp lists two of them.",
            [[registered("b4", _THREE)], _checked("b4"), [phase_outcome("b4", "nlp", _THREE[:2])]],
            "explain b4 nlp",
            "not in the outcome completed_successfully of",
        ),
        Case(
            "New essays",
            "The spellcheck was reported complete, and an essay joined afterwards.",
            [[registered("b5", _THREE)], ("spellcheck", True), lambda: [registered("b5", [*_THREE, "dan"])]],
            "explain b5 spellcheck",
            "new since",
        ),
        Case(
            "Essays that nobody has named",
            "Five essays are expected, and events have named three.",
            [[registered("b6", _THREE, 5)], _checked("b6")],
            "explain b6 spellcheck",
            "2 more essays are expected, which no event has named",
        ),
        Case(
            "Not registered",
            "One essay is spellchecked, and the registration has not come. `BCS_REQUIRE_REGISTRATION` is set.",
            [_checked("b7", ["anna"])],
            "explain b7 spellcheck",
            "the batch is not registered",
        ),
        Case(
            "Complete by the events of its essays",
            "Every essay is spellchecked.",
            [[registered("b8", _THREE)], _checked("b8")],
            "explain b8 spellcheck",
            "by the events of 3 essays",
        ),
        Case(
            "Complete by an outcome",
            "The outcome of nlp lists every essay.",
            [[registered("b9", _THREE)], _checked("b9"), [phase_outcome("b9", "nlp", _THREE)]],
            "explain b9 nlp",
            "by the outcome completed_successfully for 3 essays",
        ),
        Case(
            "Complete as reported",
            "A caller reported the spellcheck over HTTP.",
            [[registered("b10", _THREE)], ("spellcheck", True)],
            "explain b10 spellcheck",
            "as reported for 3 essays",
        ),
        Case(
            "Settled",
            "One spellcheck failed, and a draft of the definitions takes that for done.",
            [[registered("b11", _THREE)], [*_checked("b11", _THREE[:2]), spellchecked("b11", "cleo", status="failed")]],
            "explain b11 spellcheck --definitions draft.yaml",
            "settled, 2 of 3 essays completed it; failed: cleo",
            definitions=_SETTLED,
        ),
        Case(
            "Forced",
            "Every essay is spellchecked. `resolve` forces for real, and the history says who did.",
            [[registered("b12", _THREE)], _checked("b12")],
            "resolve b12 spellcheck --force spellcheck",
            "forced",
        ),
        Case(
            "After a forced phase",
            "Both phases are complete, and in a draft of the definitions nlp runs again with its dependencies.",
            [[registered("b13", _THREE)], _checked("b13"), [phase_outcome("b13", "nlp", _THREE)]],
            "explain b13 nlp --force spellcheck --definitions draft.yaml",
            "it must follow spellcheck, because of what the request forces",
            definitions=_RERUN,
        ),
        Case(
            "Its definition changed",
            "The phase is complete. It has `rerun_when_changed`, and in a draft of the definitions another `revision`.",
            [[registered("b17", _THREE)], _checked("b17"), [phase_outcome("b17", "ai_feedback", _THREE)]],
            "explain b17 ai_feedback --definitions draft.yaml",
            "its definition changed since",
            definitions=_CHANGED,
        ),
        Case(
            "What if",
            "What would run if the spellcheck were complete?",
            [[registered("b14", _THREE)]],
            "explain b14 nlp --assume-completed spellcheck",
            "it is assumed to be complete",
        ),
        Case(
            "Left out, although needed",
            "Two of three essays are spellchecked, and the request leaves the spellcheck out.",
            [[registered("b15", _THREE)], _checked("b15", _THREE[:2])],
            "explain b15 nlp --exclude spellcheck",
            "the request leaves out what nlp needs",
            exit_code=1,
        ),
        Case(
            "Many batches",
            "How much would nlp cost for these batches if their spellcheck were complete?",
            [],
            "plan --pipeline nlp --assume-completed spellcheck",
            "5 batches planned for nlp",
            given="b2\nb3\nb4\nb9\nb10\n",
        ),
    ]


def play() -> str:
    """Play all cases, with servers of their own.

    :returns: the document.
    :raises AssertionError: a case is not explained as it should be.
    """
    with embedded_servers() as servers, tempfile.TemporaryDirectory() as directory:
        return anyio.run(_play, servers, Path(directory))


async def _play(servers: Servers, directory: Path) -> str:
    settings: dict[str, object] = {
        "redis_url": servers.redis_url,
        "kafka_bootstrap_servers": servers.kafka,
        "database_url": servers.database_url,
        "database_first_probe_seconds": 10.0,
        "require_registration": True,
        "pipeline_config_path": directory / "pipelines.yaml",
    }
    (directory / "pipelines.yaml").write_text(_IN_USE)
    async with (
        running_service(**settings) as service,
        Platform(servers.kafka) as platform,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.request("POST", "/internal/v1/pipelines/reload")).status == 200
        sections = [await _section(case, directory, service, platform, orchestrator) for case in cases()]
        answer = (await orchestrator.get("/internal/v1/batches/b3/explain/nlp")).json
    return _document(sections, json.dumps(answer["explanation"], indent=2))


async def _section(
    case: Case, directory: Path, service: RunningService, platform: Platform, orchestrator: Orchestrator
) -> str:
    batch = case.command.split()[1]
    for step in case.steps:
        if isinstance(step, tuple):
            phase, success = step
            assert (await orchestrator.complete(batch, phase, success)).status == 200
        else:
            await platform.send(*(step() if callable(step) else step))
            await wait_until(lambda: platform.caught_up(service.group))
            await wait_until(lambda: _nothing_behind(orchestrator))
    draft = directory / "draft.yaml"
    draft.write_text(case.definitions)
    words = shlex.split(case.command.replace("draft.yaml", str(draft)))
    ran = await bcs(*words, "--url", service.base, given=case.given)
    output = (ran.output + ran.error).strip()
    assert (ran.exit_code, case.shows in output) == (case.exit_code, True), (case.title, ran)
    before = f"$ cat draft.yaml\n{case.definitions}\n" if case.definitions else ""
    given = " < batches.txt" if case.given else ""
    return f"## {case.title}\n\n{case.told}\n\n```\n{before}$ bcs {case.command}{given}\n{output}\n```\n"


async def _nothing_behind(orchestrator: Orchestrator) -> bool:
    lags = await orchestrator.samples("bcs_kafka_consumer_lag")
    return bool(lags) and not any(value for _, _, value in lags)


_HEAD = """\
# Explaining

Why does a phase run, why is it pruned, and what would be if? `bcs explain BATCH PIPELINE` asks the running service,
and so does `GET /internal/v1/batches/{id}/explain/{pipeline}`. Both have no effect. With `"explain": true` in its body,
`pipelines/define` explains what it answers, and with `"dry_run": true` it has no effect either.
[http-api.md](http-api.md#options) has all options.

`python -m tests.e2e.explaining` runs these commands against a service and writes this file; a test of the release tier
runs them, too. The service has an archive, which is why it can name the events.
"""
_DATA = """\
## The same as data

`explanation` in the answer has all that the sentences say, and the counts, as data. Whoever reads only these data can
decide again, and comes to the same pipeline; `tests/support/explanation_checker.py` does. This is the explanation of
the batch whose spellcheck failed for one essay:
"""


def _document(sections: Sequence[str], data: str) -> str:
    return "\n".join([_HEAD, *sections, f"{_DATA}\n```json\n{data}\n```\n"])


def masked(document: str) -> str:
    """A document without what differs from run to run: times, ids, ports, and places in Kafka."""
    document = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", document)
    document = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", document)
    document = re.sub(r"(huleedu[\w.]+)/\d+/\d+", r"\1/PLACE", document)
    document = re.sub(
        r"(number|for|partition\":|offset\":|number\":|state_version\":|seconds_behind\":) [\d.]+", r"\1 N", document
    )
    document = re.sub(r"\d+ events? waited", "N waited", document)
    return re.sub(r"events_behind\": \d+", "events_behind N", document)


if __name__ == "__main__":
    DOCUMENT.write_text(play())
