"""What is shipped: the wheel, the sdist, the list of parts, and the image as its Dockerfile builds it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bcs import __version__
from bcs.devtools.servers.embedded import free_port
from tests.support.service import BcsProcess
from tests.support.waiting import wait_until
from tests.unit.test_image import DOCKERFILE, LOCKS, ROOT, pins

pytestmark = [pytest.mark.release, pytest.mark.anyio]

IMAGE_USER = 10001


def run(*command: str, cwd: Path, **options: object) -> str:
    """Run a command that has to succeed, and return its output."""
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return str(ran.stdout)


def build(target: str, *, source: Path, into: Path) -> Path:
    """Build a wheel or an sdist."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into), cwd=source)
    [built] = into.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


def names_in(wheel: Path) -> set[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_of_the_sdist_is_the_wheel_of_the_sources(tmp_path: Path) -> None:
    wheel = build("wheel", source=ROOT, into=tmp_path / "wheel")
    sdist = build("sdist", source=ROOT, into=tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    again = build("wheel", source=unpacked, into=tmp_path / "again")
    assert names_in(again) == names_in(wheel)
    assert {"bcs/config/pipelines.yaml", "bcs/py.typed", "bcs/__main__.py"} <= names_in(wheel)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names_in(wheel))
    assert __version__ in wheel.name


def test_the_list_of_parts_names_each_locked_package_with_its_hashes(tmp_path: Path) -> None:
    document = (ROOT / "docs/deploying.md").read_text()
    [command] = re.findall(r"<!-- command: sbom -->\n *```bash\n *(.*?)\n *```", document, re.DOTALL)
    listed = tmp_path / "sbom.cdx.json"
    program = Path(sys.executable).parent / "cyclonedx-py"
    parts = command.replace(".venv/bin/cyclonedx-py", str(program)).replace("sbom.cdx.json", str(listed)).split()
    run(*parts, cwd=ROOT)
    parsed = json.loads(listed.read_text())
    assert parsed["bomFormat"] == "CycloneDX"
    assert parsed["metadata"]["component"]["version"] == __version__
    found = {part["name"]: part["version"] for part in parsed["components"]}
    assert found == {name: version for name, (version, _) in pins(LOCKS[0]).items()}
    assert all(
        any(reference.get("hashes") for reference in part["externalReferences"]) for part in parsed["components"]
    )


@pytest.fixture
def image() -> Iterator[Path]:
    """An empty directory that every user can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


async def test_the_image_as_its_dockerfile_builds_it_serves_and_writes_no_file(
    image: Path, tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, unique_name: Callable[[str], str]
) -> None:
    source = image / "src"
    source.mkdir()
    for name in ("bcs", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    lines = re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    assert lines
    without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for line in lines:
        script = line.replace("\\\n", " ").replace("python -m venv", f"{sys.executable} -m venv")
        run("sh", "-euc", re.sub(r"(?<![\w/])/(opt|dist)\b", rf"{image}/\1", script), cwd=source, env=without_ours)
    installed = image / "opt/bcs/bin"
    assert not list(installed.glob("pip*"))

    # Root may write anywhere, so only another user shows that nothing is written.
    as_user = ["setpriv", f"--reuid={IMAGE_USER}", f"--regid={IMAGE_USER}", "--clear-groups"] if not os.getuid() else []
    outside = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    variables = {
        "BCS_ENVIRONMENT": "production",
        "BCS_HTTP_HOST": "127.0.0.1",
        "BCS_HTTP_PORT": free_port(),
        "BCS_REDIS_URL": redis_url,
        "BCS_REDIS_KEY_PREFIX": unique_name("image"),
        "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap_servers,
        "BCS_KAFKA_CONSUMER_GROUP_ID": unique_name("image"),
        "BCS_KAFKA_ENABLE_IDEMPOTENCE": False,
    }

    def start(name: str, argument: str) -> BcsProcess:
        return BcsProcess(tmp_path / name, argument, command=[*as_user, str(installed / "bcs")], **outside, **variables)

    with start("service", "serve") as service:
        await wait_until(lambda: start("probe", "healthcheck").process.wait() == 0)
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    log = service.log.read_text()
    assert "Permission denied" not in log
    assert "Read-only" not in log
