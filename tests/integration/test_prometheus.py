"""Prometheus' own tool accepts the metrics and the alert rules of BCS."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from tests.support.alert_stories import MINUTE, RULES, STORIES, Story, all_rules, write_tests
from tests.support.service import Orchestrator

pytestmark = pytest.mark.anyio

ALERTS = [rule for rule in all_rules() if "alert" in rule]


@pytest.fixture
def promtool() -> str:
    """Prometheus' tool."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no Prometheus: the program `promtool` (Debian's package `prometheus`) is not installed")
    return program


async def output_of(*command: str, given: bytes = b"") -> tuple[int, str]:
    """The exit code and the output of a command."""
    ran = await anyio.run_process(command, input=given, stderr=subprocess.STDOUT, check=False)
    return ran.returncode, ran.stdout.decode()


async def test_promtool_takes_a_scrape(promtool: str, orchestrator: Orchestrator) -> None:
    scrape = (await orchestrator.get("/metrics")).body
    assert await output_of(promtool, "check", "metrics", given=scrape) == (0, "")
    code, _ = await output_of(promtool, "check", "metrics", given=scrape.replace(b"# HELP bcs_kafka_up", b"# "))
    assert code != 0, "it would notice"


async def test_promtool_takes_the_alert_rules(promtool: str) -> None:
    code, said = await output_of(promtool, "check", "rules", str(RULES))
    assert code == 0, said
    assert "SUCCESS" in said


async def test_every_series_that_a_rule_reads_is_in_a_scrape(orchestrator: Orchestrator) -> None:
    scrape = (await orchestrator.get("/metrics")).body.decode()
    families = set(re.findall(r"^# TYPE (\S+) ", scrape, re.MULTILINE))
    read = {name for rule in all_rules() for name in re.findall(r"\b(?:bcs|process)_\w+", rule["expr"])}
    assert len(read) > 25
    assert {re.sub(r"_(bucket|count)$", "", name) for name in read} <= families
    # An increase from nothing to one would not be seen.
    for endpoint in ("/internal/v1/pipelines/define", "/internal/v1/phases/complete"):
        for status in (200, 500, 503):
            assert f'endpoint="{endpoint}",method="POST",status_code="{status}"}}' in scrape


async def test_every_alert_fires_in_its_story_and_not_before_or_after(promtool: str, tmp_path: Path) -> None:
    """Those whose windows are longer than an hour or so have their stories in the release tier."""
    await play(promtool, tmp_path, [story for story in STORIES if story.step == MINUTE])


@pytest.mark.release
async def test_every_alert_fires_in_its_long_story_and_not_before_or_after(promtool: str, tmp_path: Path) -> None:
    await play(promtool, tmp_path, [story for story in STORIES if story.step != MINUTE])


@pytest.mark.release
async def test_the_stories_notice_an_alert_that_never_fires_always_fires_or_does_not_wait(
    promtool: str, tmp_path: Path
) -> None:
    unnoticed = []
    for rule in ALERTS:
        changed = [{**rule, "expr": f"({rule['expr']}) and on () vector(1) == 0"}]
        changed.append({**rule, "expr": f"({rule['expr']}) or on () vector(1)"})
        if "for" in rule:
            changed.append({**rule, "for": "0s"})
        mine = [story for story in STORIES if story.alert == rule["alert"]]
        for other in changed:
            rules = [other if one.get("alert") == rule["alert"] else one for one in all_rules()]
            if not await played(promtool, tmp_path, mine, rules):
                unnoticed.append(other)
    assert not unnoticed


async def play(promtool: str, directory: Path, stories: list[Story]) -> None:
    assert stories
    assert await played(promtool, directory, stories) == ""


async def played(
    promtool: str, directory: Path, stories: list[Story], rules: list[dict[str, object]] | None = None
) -> str:
    """What promtool objects to; empty if it objects to nothing."""
    files = write_tests(directory, rules or (), stories)
    code, said = await output_of(promtool, "test", "rules", *map(str, files))
    return "" if code == 0 else said
