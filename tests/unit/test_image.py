"""The image: what it is built from, who it runs as, and how it is asked for its health."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bcs import __version__
from bcs.cli.main import HEALTH_SECONDS, cli

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = [ROOT / "config/requirements-image.txt", ROOT / "config/requirements-build.txt"]


def pins(lock: Path) -> dict[str, tuple[str, int]]:
    """The packages of a lock, each with its version and the number of its hashes."""
    found: dict[str, tuple[str, int]] = {}
    for block in lock.read_text().replace("\\\n", " ").splitlines():
        line, *hashes = re.split(r"\s+--hash=sha256:", block.strip())
        requirement = Requirement(line)
        [specifier] = requirement.specifier
        assert specifier.operator == "=="
        found[canonicalize_name(requirement.name)] = (specifier.version, len(hashes))
    return found


def values_of(instruction: str) -> list[str]:
    """What the Dockerfile has after an instruction."""
    return re.findall(rf"^{instruction} (.*)$", DOCKERFILE, re.MULTILINE)


def test_the_healthcheck_of_the_image_is_bcs_healthcheck_alone() -> None:
    [(options, command)] = re.findall(r"^HEALTHCHECK (.*?) CMD (.*)$", DOCKERFILE, re.MULTILINE)
    program, name = json.loads(command)
    assert program == json.loads(values_of("ENTRYPOINT")[0])[0]
    assert name in {str(known.callback.__name__) for known in cli.registered_commands if known.callback}
    given = dict(option.removeprefix("--").split("=") for option in shlex.split(options))
    assert float(given["timeout"].removesuffix("s")) > HEALTH_SECONDS


def test_the_image_runs_as_a_number_without_a_shell() -> None:
    [user] = values_of("USER")
    assert all(number.isdecimal() and int(number) for number in user.split(":"))
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert "\nRUN " not in last_stage
    for instruction in ("ENTRYPOINT", "CMD"):
        [value] = values_of(instruction)
        assert isinstance(json.loads(value), list)


def test_every_stage_begins_with_the_base_image_of_the_digest() -> None:
    stages = values_of("FROM")
    assert {stage.split()[0] for stage in stages} == {"python:3.11-slim${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"}
    assert DOCKERFILE.index("ARG PYTHON_DIGEST") < DOCKERFILE.index("FROM ")


def test_what_the_image_copies_is_part_of_the_build() -> None:
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = [source for value in values_of("COPY") if not value.startswith("--from") for source in value.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert Path(source).parts[0] in sent


def test_each_locked_package_has_hashes_and_names_no_server() -> None:
    for lock in LOCKS:
        assert all(hashes for _, hashes in pins(lock).values())
        assert "://" not in lock.read_text()


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    tested = {str(canonicalize_name(line.name)): str(line.specifier).removeprefix("==") for line in lines}
    for lock in LOCKS:
        for name, (version, _) in pins(lock).items():
            assert tested[name] == version


def test_the_lock_of_the_image_has_each_dependency_in_a_fitting_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(LOCKS[0])
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["postgres"] + extras["tracing"]:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version, _ = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version)


def test_the_version_is_that_of_the_package() -> None:
    assert __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
