"""A name service that never answers: every process ends in time, with its exit code, and other names are looked up."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

NAMESPACES = ["unshare", "--map-root-user", "--mount", "--net"]
COMMANDS = ["doctor", "dlq list", "batches show", "batches history", "db upgrade", "actors"]
SHUTDOWN_SECONDS = 5


@cache
def has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(not has_namespaces(), reason="no namespaces can be made here"),
]


def played(scenario: str, directory: Path) -> Any:
    """The result of a scenario of `without_names`."""
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.e2e.without_names", scenario, directory],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_stop_is_in_time_with_the_right_exit_code(tmp_path: Path) -> None:
    came = played("stop", tmp_path)
    assert came["exit_code"] == 0
    assert "exit_code=0" in came["log"]
    assert "forced_exit" not in came["log"]
    assert came["seconds"] < SHUTDOWN_SECONDS + 5, "before the last resort of a stop"


def test_lookups_that_hang_leave_room_for_those_of_other_names(tmp_path: Path) -> None:
    assert played("reconnect", tmp_path)["answered"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_comes_to_its_end_and_says_what_is_wrong(tmp_path: Path, command: str) -> None:
    came = played(command, tmp_path)
    assert came["exit_code"] == 1
    assert "Traceback" not in came["said"]
    assert came["said"].strip()
