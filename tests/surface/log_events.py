"""What the log may say, read from the source: logger, level, event, fields. It does not matter in which file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_MAKERS = frozenset({"get_logger", "getLogger"})
_LOGGER = re.compile(r"\b_?log(ger)?$")
_LOGS = re.compile(r"get_logger|getLogger|\b_?log(ger)?\b|\bevent=")
"""Stands in each file that has to do with the log: to parse the others would take most of the time."""

_SAID_BY_NOBODY = frozenset({"summed_by"})  # it is taken out before the line is written
_UNKNOWN = "?"


@dataclass(slots=True)
class _Logger:
    """A logger, and the fields that each of its lines has."""

    name: str
    fields: list[str]


@dataclass(slots=True)
class _Module:
    """A module's tree, its loggers, and its functions."""

    name: str
    tree: ast.Module
    loggers: dict[str, _Logger] = field(default_factory=dict)
    functions: dict[str, ast.AST] = field(default_factory=dict)


class NotReadable(Exception):
    """A call of a logger that is written in a way that is not understood here."""


def facts_of_log_events(package: Path) -> list[str]:
    """A line for each event with its fields; calls that say the same are one.

    :raises NotReadable: a call is written in a way that is not understood here.
    """
    files = [file for file in sorted(package.rglob("*.py")) if _LOGS.search(file.read_text())]
    modules = [_module(file, package) for file in files]
    by_name = {module.name: module for module in modules}
    for module in modules:
        _share_loggers(module, by_name)
    return sorted({line for module in modules for line in _events_of(module, modules)})


def _module(file: Path, package: Path) -> _Module:
    relative = file.relative_to(package.parent).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    module = _Module(".".join(parts), ast.parse(file.read_text()))
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            maker = node.value.func
            if isinstance(maker, ast.Attribute) and maker.attr in _MAKERS:
                [target] = node.targets
                assert isinstance(target, ast.Name)
                module.loggers[target.id] = _logger(node.value, module.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            module.functions[node.name] = node
    return module


def _logger(made: ast.Call, module: str) -> _Logger:
    [name] = made.args
    bound = [f"{one.arg}={ast.unparse(one.value)}" for one in made.keywords]
    # A logger that is called after its module is seen under that name.
    return _Logger(module if isinstance(name, ast.Name) else str(ast.literal_eval(name)), bound)


def _share_loggers(module: _Module, by_name: Mapping[str, _Module]) -> None:
    for node in module.tree.body:
        source = by_name.get(node.module or "") if isinstance(node, ast.ImportFrom) else None
        if isinstance(node, ast.ImportFrom) and source:
            for name in node.names:
                if (logger := source.loggers.get(name.name)) is not None:
                    module.loggers[name.asname or name.name] = logger


def _events_of(module: _Module, modules: Iterable[_Module]) -> Iterator[str]:
    for function, call in _calls(module.tree):
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _LEVELS:
            continue
        said_by = ast.unparse(call.func.value)
        if said_by not in module.loggers:
            if _LOGGER.search(said_by):
                raise NotReadable(f"which logger is {said_by} in {module.name}?")
            continue
        logger = module.loggers[said_by]
        said = {*_fields(call.keywords, function, module)} - _SAID_BY_NOBODY
        fields = sorted([*said, *(bound for bound in logger.fields if bound.partition("=")[0] not in said)])
        for event in _names_of(call.args[0], function, modules):
            yield f"{logger.name}: {call.func.attr}: {event}: {', '.join(fields) or 'no fields'}"


@cache
def _calls(tree: ast.Module) -> list[tuple[ast.AST, ast.Call]]:
    """All calls, each with the innermost function that it stands in."""
    found: list[tuple[ast.AST, ast.Call]] = []
    functions: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while functions:
        node, function = functions.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                found.append((function, child))
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            functions.append((child, child if inner else function))
    return found


def _names_of(said: ast.expr, function: ast.AST, modules: Iterable[_Module]) -> list[str]:
    if isinstance(said, ast.Constant):
        return [str(said.value)]
    if isinstance(said, ast.IfExp):
        return [*_names_of(said.body, function, modules), *_names_of(said.orelse, function, modules)]
    if isinstance(said, ast.Name):
        if values := _assigned(said.id, function):
            return [name for value in values for name in _names_of(value, function, modules)]
        if given := _given(said.id, modules):
            return given
    raise NotReadable(f"which event is logged by {ast.unparse(said)}?")


def _assigned(name: str, function: ast.AST) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == name
    ]


def _given(parameter: str, modules: Iterable[_Module]) -> list[str]:
    """The texts that any call gives to a parameter of this name."""
    return sorted(
        str(one.value.value)
        for module in modules
        for _, call in _calls(module.tree)
        for one in call.keywords
        if one.arg == parameter and isinstance(one.value, ast.Constant) and one.value.value is not None
    )


def _fields(keywords: Iterable[ast.keyword], function: ast.AST, module: _Module) -> Iterator[str]:
    for keyword in keywords:
        if keyword.arg is not None:
            yield keyword.arg
        else:
            yield from _keys_of(keyword.value, function, module)


def _keys_of(spread: ast.expr, function: ast.AST, module: _Module) -> list[str]:
    """The names in a dictionary that is spread into a call."""
    if isinstance(spread, ast.Dict):
        return [str(ast.literal_eval(key)) if key else _UNKNOWN for key in spread.keys]
    if isinstance(spread, ast.IfExp):
        return [*_keys_of(spread.body, function, module), *_keys_of(spread.orelse, function, module)]
    if isinstance(spread, ast.Name) and (values := _assigned(spread.id, function)):
        return [key for value in values for key in _keys_of(value, function, module)]
    if isinstance(spread, ast.Call) and isinstance(spread.func, ast.Name) and spread.func.id in module.functions:
        made = module.functions[spread.func.id]
        returned = [node.value for node in ast.walk(made) if isinstance(node, ast.Return) and node.value]
        return [key for value in returned for key in _keys_of(value, made, module)]
    if isinstance(function, ast.FunctionDef) and function.args.kwarg and function.args.kwarg.arg == ast.unparse(spread):
        calls = [call for _, call in _calls(module.tree) if ast.unparse(call.func) == function.name]
        return [one.arg or _UNKNOWN for call in calls for one in call.keywords]
    return [f"**{ast.unparse(spread)}"]
