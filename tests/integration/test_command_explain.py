"""`bcs explain`, and `bcs resolve` with options, against a running service."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcs.wire import topics
from tests.integration.test_explain import DRAFT, told  # noqa: F401 (a fixture)
from tests.support.commands import bcs, bcs_at_terminal, settings_of
from tests.support.explanation_checker import check_essays, pipeline_of
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService

pytestmark = pytest.mark.anyio


async def test_a_person_reads_why_each_phase_runs(service: RunningService, told: str) -> None:  # noqa: F811
    ran = await bcs("explain", told, "nlp", "--url", service.base)
    assert (ran.exit_code, ran.error) == (0, "")
    lines = ran.output.splitlines()
    assert lines[:2] == [f"Batch {told}: 3 essays known, 3 expected", "Pipeline nlp: 1 of 2 phases to run"]
    assert lines[3] == "spellcheck is pruned"
    assert lines[4].startswith("  complete since ")
    assert lines[4].endswith("Z by the events of 3 essays.")
    assert lines[6] == "nlp runs"
    assert lines[7].startswith("  2 of 3 essays completed it; not in the outcome completed_successfully of ")
    assert lines[7].endswith(": c.")
    assert lines[9].startswith("When this was read, ")


@pytest.mark.release
async def test_a_program_reads_the_data_also_of_all_essays(service: RunningService, told: str) -> None:  # noqa: F811
    short = (await bcs("explain", told, "nlp", "--url", service.base, "--json")).json
    assert pipeline_of(short) == short["final_pipeline"] == ["nlp"]
    full = (await bcs("explain", told, "nlp", "--url", service.base, "--json", "--full")).json
    check_essays(full)
    at_terminal = await bcs_at_terminal(80, "explain", told, "nlp", "--url", service.base)
    assert max(map(len, at_terminal.uncoloured.splitlines())) <= 80
    ran = await bcs("explain", told, "nlp", "--url", service.base, "--full", "--force", "nlp")
    assert ran.exit_code == 2


@pytest.mark.release
async def test_what_would_be_if(service: RunningService, told: str, tmp_path: Path) -> None:  # noqa: F811
    url = ("--url", service.base)
    ran = await bcs("explain", told, "nlp", "--assume-completed", "nlp", "--force", "spellcheck", *url)
    assert "Pipeline nlp: 1 of 2 phases to run" in ran.output
    assert "  the request forces it to run; complete since " in ran.output
    assert "  it is assumed to be complete." in ran.output
    file = tmp_path / "draft.yaml"
    file.write_text(str(DRAFT).replace("True", "true"))
    ran = await bcs("explain", told, "translated", "--definitions", str(file), *url, "--json")
    assert ran.json["final_pipeline"] == ["translation"]
    file.write_text("phases: [")
    assert (await bcs("explain", told, "translated", "--definitions", str(file), *url)).exit_code == 2
    refused = await bcs("explain", told, "nlp", "--exclude", "nlp", "--force", "nlp", *url)
    assert (refused.exit_code, refused.output) == (1, "")
    assert "force: must be phases that the request is about: spellcheck" in refused.error


@pytest.mark.release
@pytest.mark.parametrize("where", ["--dry-run", "--offline"])
async def test_resolve_shows_what_options_do_without_an_effect(
    service: RunningService,
    told: str,  # noqa: F811
    platform: Platform,
    orchestrator: Orchestrator,
    where: str,
) -> None:
    options = ("--force", "all", "--until", "nlp", "--exclude", "spellcheck")
    ran = await bcs("resolve", told, "comprehensive", where, *options, "--url", service.base, **settings_of(service))
    rows = [line.split() for line in ran.output.splitlines()]
    assert ["spellcheck", "left", "out", "not", "selected"] in rows
    assert ["nlp", "run", "essays", "left", "out"] in rows
    assert "nothing was announced" in ran.output
    assert await platform.messages(topics.PHASE_SKIPPED, told) == []


@pytest.mark.release
async def test_resolve_forces_for_real(service: RunningService, told: str) -> None:  # noqa: F811
    ran = await bcs("resolve", told, "nlp", "--force", "spellcheck", "--url", service.base, "--json")
    assert (ran.json["final_pipeline"], ran.json["announced_phases"]) == (["spellcheck", "nlp"], [])
