"""The servers of the story, for whoever plays it without pytest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bcs.devtools.servers.embedded import valkey
from bcs.devtools.servers.postgres import postgres
from tests.support.databases import database
from tests.support.kafka import platform_broker
from tests.surface.scenario import Servers


@contextmanager
def embedded_servers() -> Iterator[Servers]:
    """All of them, empty; they end with the context."""
    with tempfile.TemporaryDirectory(prefix="bcs-surface-") as name:
        directory = Path(name)
        # PostgreSQL refuses to be root, and the user that it runs as instead must get to its files.
        directory.chmod(0o755)
        with (
            valkey(directory / "valkey") as redis,
            platform_broker(directory / "kafka") as kafka,
            postgres(directory / "postgres", durable=False) as server,
            database(server.url) as database_url,
        ):
            yield Servers(f"redis://{redis.address}/0", kafka, server.url, database_url)
