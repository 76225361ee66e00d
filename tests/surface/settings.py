"""The settings: variables, types, limits, defaults, descriptions, and which values contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from bcs.config.loading import load_settings
from bcs.config.settings import InvalidSettings
from tests.surface.facts import lines_of, said_lines_of

# Each is beyond what another one allows.
_CONTRADICTIONS: Mapping[str, object] = {
    "request_deadline_seconds": 40,
    "redis_deadline_seconds": 50,
    "database_deadline_seconds": 60,
    "kafka_heartbeat_interval_seconds": 40,
    "hang_seconds": 1,
    "restart_backoff_initial_seconds": 10,
    "archive_retention_days": 1,
    "redis_url": "http://nowhere",
    "kafka_bootstrap_servers": "nowhere",
    "database_url": "postgresql://user:p@ss@host/db",
}


def facts_of_settings(settings: type[BaseSettings]) -> list[str]:
    """Lines for each variable, in the order in which they are defined."""
    prefix = settings.model_config.get("env_prefix", "")
    schema = settings.model_json_schema()
    defaults = settings.model_construct()
    lines: list[str] = []
    for name, described in schema["properties"].items():
        default = getattr(defaults, name)
        default = default.get_secret_value() if isinstance(default, SecretStr) else default
        variable = f"{prefix}{name.upper()}"
        # A default that is false or null says something.
        lines += lines_of(f"{variable}.default", default.value if isinstance(default, Enum) else default)
        if settings.model_fields[name].default_factory_takes_validated_data:
            lines.append(f"{variable}.default follows another setting")
        lines += said_lines_of(variable, _resolved(described, schema.get("$defs", {})))
    return lines


def facts_of_contradictions() -> list[str]:
    """What is said of values of which each contradicts another one."""
    with _no_variables():
        try:
            load_settings(**_CONTRADICTIONS)
        except InvalidSettings as refusal:
            return [f"refused: {variable}: {problem}" for variable, problem in refusal.problems]
    return []


def _resolved(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    resolved = {name: value for name, value in described.items() if name not in ("$ref", "default", "title")}
    if "$ref" in described:
        target = definitions[described["$ref"].rpartition("/")[2]]
        resolved |= {name: value for name, value in target.items() if name in ("enum", "type")}
    return resolved


@contextmanager
def _no_variables() -> Iterator[None]:
    """The variables of whoever runs the tests are none of the service."""
    kept = dict(os.environ)
    for name in kept:
        if name.upper().startswith("BCS_"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)
