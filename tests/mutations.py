"""Takes the safeguards of `tests/safeguards.py` out, one at a time, and shows that a test fails for each.

    .venv/bin/python -m tests.mutations             # all of them
    .venv/bin/python -m tests.mutations tie-rule    # some of them
    .venv/bin/python -m tests.mutations --list      # their names
    .venv/bin/python -m tests.mutations --markdown  # the table of docs/guarantees.md

Every run works on a copy of the tree in a temporary directory. Nothing is written to the tree itself, so a run that is
killed leaves it as it was.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.safeguards import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent

# A failed test, where 0 is success and 2 to 5 are interruptions, faults of pytest, wrong usage, and no tests.
_TESTS_FAILED = 1
_LIMIT_SECONDS = 120.0
_BASELINE_LIMIT_SECONDS = 900.0
_running: set[subprocess.Popen[str]] = set()
_FAILED = re.compile(r"^FAILED ([^\s\[]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """How pytest ended.

    :param code: its exit code; None when its time was over.
    :param failed: the tests that failed, without their parameters.
    """

    code: int | None
    failed: tuple[str, ...]
    output: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one mutation.

    :param caught_by: the tests that failed; "time limit" for a mutation that hangs; nothing when it survived.
    """

    mutation: Mutation
    caught_by: tuple[str, ...]
    run: Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 1 when a mutation survived."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {mutation.name for mutation in MUTATIONS}:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    if options.markdown:
        _say(markdown_table())
        return 0
    chosen = [mutation for mutation in MUTATIONS if not options.names or mutation.name in options.names]
    if options.list:
        for mutation in chosen:
            _say(f"{mutation.name}: {mutation.removes}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _give_up)
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        directory = Path(name)
        # PostgreSQL refuses to be root, and the user that it runs as instead must get to its files.
        directory.chmod(0o755)
        return _take_out(chosen, directory, options.jobs)


def markdown_table() -> str:
    """The table of docs/guarantees.md."""
    rows = [
        f"| {mutation.removes} | `{mutation.file}` | {', '.join(f'`{test}`' for test in mutation.tests)} |"
        for mutation in MUTATIONS
    ]
    return "\n".join(["| safeguard | taken out in | caught by |", "|---|---|---|", *rows])


def mutated(mutation: Mutation, source: str) -> str:
    """The source without the safeguard.

    :raises ValueError: the code has moved, and the mutation has to follow.
    """
    found = source.count(mutation.old)
    if found != 1:
        raise ValueError(f"{mutation.name}: its old text stands {found} times in {mutation.file}, and must stand once")
    return source.replace(mutation.old, mutation.new)


def _take_out(chosen: Sequence[Mutation], directory: Path, jobs: int) -> int:
    began = time.monotonic()
    original = directory / "original"
    # What is hidden (.venv, .git, caches) is not needed, and large.
    shutil.copytree(ROOT, original, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for mutation in chosen:
        mutated(mutation, (original / mutation.file).read_text())
    _require_copy(original)
    tests = list(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    _say(f"{len(chosen)} safeguards, {len(tests)} tests; first all of these tests on the code as it is")
    baseline = _run_tests(original, tests, _BASELINE_LIMIT_SECONDS)
    if baseline.code != 0:
        _say(f"{baseline.output}\nThe tests do not pass on the code as it is (pytest ended with {baseline.code}).")
        return 1
    _say(f"They pass ({baseline.seconds:.1f} s).\n\n{'mutation':<28} {'seconds':>7}  caught by")
    survived: list[Result] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for result in pool.map(lambda mutation: _try(mutation, original, directory), chosen):
            _say(f"{result.mutation.name:<28} {result.run.seconds:7.1f}  {', '.join(result.caught_by) or 'NOTHING'}")
            if not result.caught_by:
                survived.append(result)
    finally:
        pool.shutdown(cancel_futures=True)
    for result in survived:
        _say(f"\n{result.mutation.name} survived (pytest ended with {result.run.code}):\n{result.run.output[-3000:]}")
    _say(f"\n{len(chosen) - len(survived)} of {len(chosen)} caught, {time.monotonic() - began:.0f} s in all")
    return 1 if survived else 0


def _try(mutation: Mutation, original: Path, directory: Path) -> Result:
    copy = directory / mutation.name
    # With the bytecode that the first run has left: times are copied too, so it stays valid but for the mutated file.
    shutil.copytree(original, copy)
    try:
        file = copy / mutation.file
        file.write_text(mutated(mutation, file.read_text()))
        run = _run_tests(copy, mutation.tests, _LIMIT_SECONDS)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    if run.code is None:
        return Result(mutation, ("time limit",) if mutation.hangs else (), run)
    return Result(mutation, run.failed if run.code == _TESTS_FAILED else (), run)


def _run_tests(tree: Path, tests: Iterable[str], limit_seconds: float) -> Run:
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *tests]
    # A session of its own: with pytest end the processes that its tests have started.
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=_environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _running.add(process)
    code: int | None
    try:
        output, _ = process.communicate(timeout=limit_seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        code = None
    finally:
        _running.discard(process)
    return Run(code, tuple(dict.fromkeys(_FAILED.findall(output))), output, time.monotonic() - began)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)


def _give_up(number: int, _: object) -> None:
    for process in list(_running):
        _kill(process)
    raise SystemExit(128 + number)


def _environment(tree: Path) -> dict[str, str]:
    # Processes that the tests start find `bcs` there too: this path stands before that of an editable installation.
    return {**os.environ, "PYTHONPATH": str(tree)}


def _require_copy(tree: Path) -> None:
    """See to it that the copy is what a new process imports.

    :raises RuntimeError: another `bcs` comes first, and the tests would run on code that is not mutated.
    """
    command = [sys.executable, "-P", "-c", "import bcs; print(bcs.__file__)"]
    found = subprocess.run(command, cwd="/", env=_environment(tree), check=True, capture_output=True, text=True).stdout
    if not Path(found.strip()).is_relative_to(tree):
        raise RuntimeError(f"a new process imports {found.strip()}, and not the copy in {tree}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="Take safeguards out, one by one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutations")
    parser.add_argument("--jobs", type=int, default=1, help="how many mutations to try at a time")
    parser.add_argument("--list", action="store_true", help="list the mutations and run nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/guarantees.md")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
