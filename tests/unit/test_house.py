"""The house stays in order: every module in a room, no circles, and nothing that takes a row of nameless arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import bcs

ROOT = Path(bcs.__file__).parent
TESTS = Path(__file__).parents[1]
LOOSE = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
MOST_POSITIONAL = 5
# Whose constructor is not ours.
FOREIGN = {"Settings", "CommandSettings", "ArchiveConnection", "_TlsConnection"}


def modules() -> dict[str, ast.Module]:
    """All of them by name."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text())
    return found


def statements(within: ast.AST) -> Iterator[ast.AST]:
    """All statements, without their expressions: these are most of a tree, and import nothing."""
    for node in ast.iter_child_nodes(within):
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield node
            yield from statements(node)


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, also those that only a type checker sees."""
    for node in statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_module_lies_loose_beside_the_packages() -> None:
    loose = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert loose == LOOSE


def test_modules_form_no_circles() -> None:
    found = modules()
    assert len(found) > 200
    names = found.keys()
    # A package is imported with each of its modules; what it offers in its own name may come from these.
    graph = {
        name: {other for other in imports(tree) if other in names and other != name and other != "bcs"}
        for name, tree in found.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def classes() -> Iterator[type]:
    """All classes of ours, those of migrations aside."""
    for module in pkgutil.walk_packages(bcs.__path__, "bcs."):
        if ".migrations" not in module.name and not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and value.__module__ == module.name:
                    yield value


def test_no_constructor_takes_more_than_five_arguments_without_their_names() -> None:
    long = []
    seen = 0
    for each in classes():
        if each.__name__ in FOREIGN or issubclass(each, BaseException):
            continue
        seen += 1
        try:
            parameters = inspect.signature(each).parameters.values()
        except ValueError:  # of a base that is written in C
            continue
        positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        if len(positional) > MOST_POSITIONAL:
            long.append(f"{each.__module__}.{each.__name__}: {len(positional)}")
    assert seen > 150
    assert long == []


# A turn of the loop is no wait; the program of a child process is text.
WAITS = re.compile(r"\bsleep\((?!0\))(?!60\)\"\])")


def test_each_sleep_of_a_test_has_its_reason() -> None:
    """In a comment beside it or above it; those of tests/supervision are on a clock that jumps."""
    unexplained = []
    for file in sorted(TESTS.rglob("*.py")):
        lines = file.read_text().splitlines()
        unexplained += [
            f"{file.relative_to(TESTS)}: {line.strip()}"
            for above, line in pairwise(["", *lines])
            if WAITS.search(line) and "def " not in line and "#" not in line and not above.lstrip().startswith("#")
        ]
    assert [line for line in unexplained if not line.startswith("supervision/")] == []
