"""All families of the public surface, each with what tells its facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

import bcs
from bcs.cli.main import cli
from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from tests.surface.commands import facts_of_commands, facts_of_exit_codes
from tests.surface.log_events import facts_of_log_events
from tests.surface.metrics import facts_of_metrics
from tests.surface.schemas import DOCUMENTS, facts_of_schemas
from tests.surface.settings import facts_of_contradictions, facts_of_settings

WITHOUT_SERVERS: Mapping[str, Callable[[], list[str]]] = {
    "metrics": lambda: facts_of_metrics(Telemetry().registry),
    "log_events": lambda: facts_of_log_events(Path(bcs.__file__).parent),
    "settings": lambda: [*facts_of_settings(Settings), *facts_of_contradictions()],
    "documents_read": lambda: facts_of_schemas(DOCUMENTS),
    "commands": lambda: facts_of_commands(cli),
    "exit_codes": lambda: anyio.run(facts_of_exit_codes),
}

LEAST: Mapping[str, int] = {
    "metrics": 150,
    "log_events": 60,
    "settings": 300,
    "documents_read": 150,
    "commands": 250,
    "exit_codes": 18,
    "http": 700,
    "redis": 150,
    "kafka": 80,
    "schema": 70,
    "rows": 200,
    "command_answers": 130,
    "series": 100,
}
"""So many facts each family has at least: fewer, and something is not looked at any more."""

OF_THE_STORY = tuple(family for family in LEAST if family not in WITHOUT_SERVERS)
"""Those that need servers: see `scenario`."""
