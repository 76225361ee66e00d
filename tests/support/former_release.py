"""The last released build, kept as a wheel beside the tests: `python -m tests.support.former_release COMMIT` makes it.

Replicas of it and of this build run together in tests/e2e/test_rolling_upgrade.py. After a release, keep its wheel here
instead, from its commit.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELEASES = ROOT / "tests" / "data" / "releases"


def wheel() -> Path:
    """The one wheel that is kept."""
    [kept] = RELEASES.glob("*.whl")
    return kept


def unpacked(directory: Path) -> Path:
    """Unpack it.

    :returns: a folder for the `PYTHONPATH`; the packages that it needs are those of this build.
    """
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(directory)  # noqa: S202 (our own wheel)
    where = [sys.executable, "-P", "-c", "import bcs; print(bcs.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    found = subprocess.run(where, check=True, env=environment, capture_output=True, text=True).stdout
    assert Path(found).is_relative_to(directory), f"this build would run instead: {found}"
    return directory


def keep(commit: str) -> Path:
    """Build the wheel of a commit, instead of the one that is kept. The same commit makes the same bytes."""
    git = ["git", "-C", str(ROOT)]
    source = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
    written = subprocess.run([*git, "log", "-1", "--format=%ct", commit], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=io.BytesIO(source)) as archive:
            archive.extractall(directory, filter="data")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": written.stdout.strip()}
        subprocess.run(build, check=True, cwd=directory, env=environment, capture_output=True)
        [built] = Path(directory, "dist").glob("*.whl")
        for kept in RELEASES.glob("*.whl"):
            kept.unlink()
        RELEASES.mkdir(exist_ok=True)
        return built.rename(RELEASES / built.name)


if __name__ == "__main__":
    sys.stdout.write(f"{keep(sys.argv[1]).name}\n")
