"""`bcs dev`: the whole service on one machine, with servers of its own."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent

from bcs import embedded
from bcs.app import Service
from bcs.contracts import topics
from bcs.demo import echo, tell
from bcs.dev_environment import env_file, exports, variables_of
from bcs.embedded_postgres import postgres
from bcs.logs import configure_logging
from bcs.pipeline_config import pipelines_of
from bcs.process import EXIT_STOPPED, run_until_signalled
from bcs.settings import load_settings
from bcs.signals import held

_PARTITIONS = 4


async def run_dev(demo: bool, env_path: Path | None = None) -> int:
    """Start the servers, create the topics, run the service until a signal, and stop everything.

    :param demo: also play a small story.
    :param env_path: a file that gets the variables for other commands; None for no file.
    :returns: the exit code.
    :raises EmbeddedServersMissing: the extra `embedded` is not installed.
    """
    try:
        exit_code = await _run(demo, env_path)
    except embedded.EmbeddedServerFailed:
        # Ctrl-C, and a terminal that is closed, end also what the start of a server runs beside this process.
        if not held():
            raise
        exit_code = EXIT_STOPPED
    echo("All stopped.")
    return exit_code


async def _run(demo: bool, env_path: Path | None) -> int:
    with ExitStack() as stack:
        file = stack.enter_context(env_file(env_path))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bcs-dev-")))
        redis, kafka, database = embedded.valkey(directory), embedded.kafka(directory), postgres(directory)
        for server in (redis, kafka, database):
            if held():
                return EXIT_STOPPED
            stack.enter_context(server)
        bootstrap_servers = kafka.address
        settings = load_settings(
            http_host="127.0.0.1",
            redis_url=f"redis://{redis.address}",
            database_url=database.url,
            kafka_bootstrap_servers=bootstrap_servers,
            # The embedded broker can't.
            kafka_enable_idempotence=False,
            use_mock_repository=False,
            # One member in the group, on one machine: what is slow over a network would only be slow to stop here.
            kafka_session_timeout_seconds=6.0,
            kafka_heartbeat_interval_seconds=1.0,
        )
        definitions = pipelines_of(settings)
        configure_logging(settings)
        await embedded.create_topics(bootstrap_servers, [*topics.CONSUMED, *topics.PUBLISHED], _PARTITIONS)

        async def greet(service: Service) -> None:
            base = f"http://{service.address[0]}:{service.address[1]}"
            variables = variables_of(settings, service.address[1])
            file.write(variables)
            _greet(base, settings.redis_url, bootstrap_servers, database.url, exports(variables))
            if demo:
                await tell(base, bootstrap_servers)

        return await run_until_signalled(settings, definitions, greet)


def _greet(base: str, redis_url: str, bootstrap_servers: str, database_url: str, variables: str) -> None:
    echo(
        f"""
BCS is running.
  HTTP        {base}
  Redis       {redis_url}
  Kafka       {bootstrap_servers}
  PostgreSQL  {database_url}

Try:
  curl -s {base}/healthz
  curl -s {base}/internal/v1/pipelines/define \\
    -H 'Content-Type: application/json' -d '{{"batch_id": "batch_1",
    "requested_pipeline": "ai_feedback", "correlation_id": "try-1"}}'
  curl -s {base}/internal/v1/phases/complete \\
    -H 'Content-Type: application/json' -d '{{"batch_id": "batch_1",
    "phase_name": "spellcheck", "success": true}}'
  curl -s {base}/internal/v1/batches/batch_1/history

For all other commands of bcs, in another terminal (or: bcs dev --env-file FILE):
{indent(variables, "  ")}

Ctrl-C stops all of it.
"""
    )
