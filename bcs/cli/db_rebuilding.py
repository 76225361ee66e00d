"""Runs a rebuild from the command line, until it is complete or a signal stops it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import anyio
import structlog

from bcs.config.settings import Settings
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.times import microseconds
from bcs.errors import BcsError
from bcs.ops.dlq.reading import reading_clients
from bcs.ops.rebuild.essay_limit import EssayLimit
from bcs.ops.rebuild.reading import OrderedTopicReader
from bcs.ops.rebuild.rebuilder import Rebuilder, RebuildStats
from bcs.ops.stores import StateInMemory, connected
from bcs.runtime.signals import stop_signals
from bcs.storage.postgres.opening import open_archive
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder

# The same time as at the start of a service, because the tables may have to be created first.
_PROBE_SECONDS = 5.0


async def rebuild_until_signalled(
    settings: Settings,
    definitions: PipelineDefinitions,
    begun: Callable[[OrderedTopicReader, RebuildStats], Callable[[], None]],
) -> signal.Signals | None:
    """Write the facts in Kafka to the archive.

    :param begun: called once all servers have answered. The function that it returns is called after each step.
    :returns: the signal that stopped the rebuild; None if no signal did.
    :raises ConfigurationError: there is no archive to rebuild.
    :raises KafkaUnavailable: Kafka does not answer.
    :raises StoreUnavailable: the archive or Redis does not answer.
    """
    if settings.use_mock_repository:
        raise StateInMemory
    # The archive logs for a service; a command prints its own messages.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    received: list[signal.Signals] = []
    failed: list[BcsError] = []
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            # Only the first signal is handled here. A second signal ends the process at once.
            with anyio.open_signal_receiver(*stop_signals()) as signals:
                async for number in signals:
                    received.append(number)
                    break
            group.cancel_scope.cancel()

        group.start_soon(listen)
        try:
            await _rebuild(settings, definitions, begun)
        except BcsError as error:
            failed.append(error)  # the error is raised later, outside of the exception group
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    return received[0] if received else None


async def _rebuild(
    settings: Settings,
    definitions: PipelineDefinitions,
    begun: Callable[[OrderedTopicReader, RebuildStats], Callable[[], None]],
) -> None:
    async with AsyncExitStack() as stack:
        archive = open_archive(settings)
        stack.push_async_callback(archive.aclose)
        await archive.ensure_usable(_PROBE_SECONDS)
        await archive.probe(_PROBE_SECONDS)
        nodes = await stack.enter_async_context(connected(settings))
        await nodes.ping()
        stored = StoredBatches(nodes, key_prefix=settings.redis_key_prefix)
        consumer, admin = await stack.enter_async_context(reading_clients(settings, "batch-conductor-rebuild"))
        reader = OrderedTopicReader(consumer, admin, settings.kafka_request_timeout_seconds)
        await reader.open(topics.CONSUMED)
        stats = RebuildStats()
        decoder = EventDecoder(
            definitions.phases,
            keep_unknown_phases=settings.keep_unknown_phases,
            max_event_bytes=settings.max_event_bytes,
            max_essays=settings.max_essays_per_batch,
        )
        now_us, max_skew_us = microseconds(datetime.now(UTC)), int(settings.max_clock_skew_seconds * 1_000_000)
        essay_limit = EssayLimit(archive, settings.max_essays_per_batch)
        notify = begun(reader, stats)
        await Rebuilder(
            decoder=decoder,
            archive=archive,
            stored=stored,
            notify=notify,
            now_us=now_us,
            max_skew_us=max_skew_us,
            stats=stats,
            essay_limit=essay_limit,
        ).rebuild(reader)
