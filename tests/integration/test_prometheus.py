"""Prometheus' own tool accepts the metrics and the alert rules of BCS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from tests.support.service import Orchestrator

pytestmark = pytest.mark.anyio

RULES = Path(__file__).parent.parent.parent / "config" / "prometheus-rules.yml"


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
