"""Puts the tree together, runs it, and stops it in order."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from math import inf

import anyio

from bcs.actors.batches import BatchActor
from bcs.actors.clocks import Clocks
from bcs.actors.commit_slots import CommitSlots
from bcs.actors.dead_letters import DeadLetters
from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.intake import Intake
from bcs.actors.ingest.reading import EventReader
from bcs.actors.ingest.skip_orders import SkipOrders
from bcs.actors.kafka_watch import KafkaWatch
from bcs.actors.messages import BatchCommand, MessagesAcked, OutboxGrew, StoreSummary
from bcs.actors.metrics import MetricsActor, MetricsPage
from bcs.actors.outbox_watch import OutboxWatch
from bcs.actors.publisher import Publisher
from bcs.actors.redis_probe import RedisStatus, problem_of_redis
from bcs.actors.runtime import Runtime
from bcs.actors.waking_outbox import WakingOutbox
from bcs.config.pipelines import pipelines_of
from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import BatchSummary
from bcs.http.access import callers_of
from bcs.http.server import AddressUnavailable, open_listener
from bcs.http.tls import tls_of
from bcs.kafka.clients import KafkaClients
from bcs.kafka.status import KafkaStatus
from bcs.observability.telemetry import Telemetry
from bcs.observability.tracer_factory import open_tracer
from bcs.observability.tracing import Tracer
from bcs.observability.tree_observer import TreeObserver, count_restarts_from_zero
from bcs.observability.waits import Waits
from bcs.runtime.archive import FIRST_PROBES, ArchiveParts, archive_parts
from bcs.runtime.front_end import Doors, FrontEnd, Tree, Watches, Writers
from bcs.storage.factory import open_persistence
from bcs.storage.ports import POSTGRESQL
from bcs.supervision import (
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Mailbox,
    MailboxClosed,
    MailboxFull,
    RestartIntensity,
    Supervisor,
    run_tree,
)
from bcs.usecases.active_definitions import ActiveDefinitions
from bcs.wire.decoding import EventDecoder

# After this number of missed probes the last answer of Redis is too old.
_PROBES_MISSED = 3
# More batches at a time write no faster, and a batch that waits for its turn collects messages for one commit.
_MAX_RUNNING_BATCHES = 32


class Service:
    """One BCS in one process.

    :param settings: the settings of this process.
    :param definitions: the pipelines.
    :param now: wall-clock time.
    :param gave_up: called when the root of the tree gives up, before everything is stopped.
    :param tracer: begins the spans; None for that of the settings.
    :raises TracingUnavailable: tracing is on, and its packages are missing.
    :raises AddressUnavailable: the HTTP address is not available.
    :raises InvalidSettings: a file of callers or certificates can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        definitions: PipelineDefinitions,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        gave_up: Callable[[], None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self._tracer = tracer or open_tracer(settings)
        self.telemetry = Telemetry()
        self.kafka = KafkaStatus(from_earliest=settings.kafka_auto_offset_reset == "earliest")
        self.kafka.servers = settings.kafka_bootstrap_servers
        self.waits = Waits(now)
        self._runtime = Runtime(
            settings=settings,
            kafka=KafkaClients.of(settings),
            telemetry=self.telemetry,
            waits=self.waits,
            now=now,
            new_id=uuid.uuid4,
            tracer=self._tracer,
        )
        self._gave_up = gave_up
        self.definitions = ActiveDefinitions(definitions, runtime=self._runtime, load=partial(pipelines_of, settings))
        known, tls = callers_of(settings), tls_of(settings)
        self.persistence = open_persistence(
            settings, law=self.definitions.current.law, summary_made=self._store_summary
        )
        self.listener = open_listener(settings)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.probe_listener = self._open_probe_listener()
        self.probe_address = self.address if self.probe_listener is None else self.probe_listener.getsockname()[:2]
        self._doors = Doors(listener=self.listener, probe_listener=self.probe_listener, known=known, tls=tls)
        self.store, self.outbox = self.persistence.store, self.persistence.outbox
        self._publisher_mailbox: Mailbox[OutboxGrew] = Mailbox("publisher", 1)
        self._outbox_writer = WakingOutbox(self.outbox, self._wake_publisher)
        self._intake_mailbox: Mailbox[MessagesAcked] = Mailbox("intake", inf)
        self._max_in_flight = (
            settings.intake_max_in_flight + settings.kafka_max_poll_records + settings.http_max_concurrent_requests
        )
        self._stop: anyio.Event | None = None
        self._archive_parts = self._with_archive()
        self._archive_client = self._archive_parts.archive_client if self._archive_parts else None
        self._dead_letters = DeadLetters(
            outbox=self._outbox_writer,
            runtime=self._runtime,
            is_erased=self.store.is_erased,
            archive_client=self._archive_client,
        )
        self.batches = self._batches()
        self.root = self._root()
        count_restarts_from_zero(self.telemetry, self.root.snapshot())
        for source in (self.persistence.store_name, *([POSTGRESQL] if self.persistence.archive else [])):
            self.telemetry.answers(source)

    async def run(self, stop: anyio.Event, started: Callable[[], None] | None = None) -> bool:
        """Run until `stop` is set, then stop in order.

        Cancellation stops at once. The next process reads again the events that were not durable.

        :param started: called once everything has started.
        :returns: False if the time to stop was not enough.
        :raises RedisUnusable: the server answers, but BCS does not support it; nothing was started.
        :raises DatabaseUnusable: the database answers, but can't store the archive; nothing was started.
        :raises RestartIntensityExceeded: an actor failed so often that only a new process helps.
        """
        self._stop = stop
        archive = self.persistence.archive
        try:
            if self.persistence.nodes:
                await self.persistence.nodes.ensure_usable()
            if archive:
                await archive.postgres.ensure_usable(self.settings.database_first_probe_seconds / FIRST_PROBES)
            return await run_tree(self.root, stop, shutdown_seconds=self.settings.shutdown_seconds, started=started)
        finally:
            self.listener.close()
            if self.probe_listener is not None:
                self.probe_listener.close()
            await self.persistence.aclose()
            await self._tracer.aclose()

    def _store_summary(self, batch_id: str, summary: BatchSummary, law: CompletionLaw) -> None:
        # Without room the summary is dropped: another process makes it again.
        with suppress(MailboxFull, MailboxClosed):
            self.batches.deliver_nowait(batch_id, StoreSummary(batch_id, summary, law))

    def _with_archive(self) -> ArchiveParts | None:
        archive = self.persistence.archive
        if archive is None:
            return None
        return archive_parts(
            runtime=self._runtime, archive=archive, outbox=self._outbox_writer, asks=self._max_in_flight
        )

    def _batches(self) -> DynamicSupervisor[BatchCommand]:
        settings = self.settings
        actor = BatchActor(
            runtime=self._runtime,
            store=self.store,
            archive_client=self._archive_client,
            dead_letters=self._dead_letters,
            finished=self._intake_mailbox.send_nowait,
            process_stops=self._stops,
            definitions=lambda: self.definitions.current.law.definitions,
            commit_slots=CommitSlots(max(1, settings.redis_max_connections // 4), self.store.server_of),
        )
        return DynamicSupervisor(
            "batches",
            actor.run,
            # All messages in flight may be about one batch. The limits of the senders bound their number.
            mailbox_capacity=self._max_in_flight,
            max_children=self._max_in_flight,
            max_running=_MAX_RUNNING_BATCHES,
            max_deliveries=settings.message_max_deliveries,
            shutdown_seconds=settings.shutdown_seconds / 2,
            hang_seconds=settings.hang_seconds,
            intensity=RestartIntensity(settings.batch_restart_max, settings.restart_period_seconds),
            backoff=self._backoff(),
            kill_grace_seconds=self._kill_grace(),
        )

    def _root(self) -> Supervisor:
        settings = self.settings
        archive = self.persistence.archive
        redis = RedisStatus(
            max_age_seconds=_PROBES_MISSED * (settings.redis_probe_interval_seconds + settings.redis_deadline_seconds),
            clock=time.monotonic,
        )
        outbox = OutboxWatch(outbox=self.outbox, archive=archive, now=self._runtime.now, clock=time.monotonic)
        metrics = MetricsActor(
            runtime=self._runtime,
            store=self.store,
            outbox=outbox,
            archive=archive,
            redis=redis,
            kafka=KafkaWatch(runtime=self._runtime, status=self.kafka),
            index=self.persistence.written_index,
        )
        in_flight = InFlight(settings=settings, deliver=self.batches.deliver)
        page = MetricsPage(
            runtime=self._runtime,
            archive=archive,
            kafka=self.kafka,
            outbox=outbox,
            in_flight=lambda: in_flight.messages,
            snapshot=lambda: self.root.snapshot(),
            circuit=self.persistence.circuit,
            credentials=lambda: {each.variable: each.problem for each in self._doors.credentials},
            redis_problem=None if settings.use_mock_repository else partial(problem_of_redis, redis, self.store),
        )
        publisher = Publisher(runtime=self._runtime, outbox=self.outbox, status=self.kafka)
        clocks = Clocks(
            now=self._runtime.now, store_time_us=self.store.time_us, max_skew_seconds=settings.max_clock_skew_seconds
        )
        decoder = EventDecoder(
            (),
            max_event_bytes=settings.max_event_bytes,
            max_essays=settings.max_essays_per_batch,
        )
        self.definitions.follow(decoder.use_phases)
        events = EventReader(
            decoder=decoder,
            clocks=clocks,
            skip_orders=SkipOrders(store=self.persistence.skips, instance=settings.instance, now=self._runtime.now),
            now=self._runtime.now,
        )
        intake = Intake(
            runtime=self._runtime,
            reader=events,
            in_flight=in_flight,
            dead_letters=self._dead_letters,
            status=self.kafka,
        )
        http = FrontEnd(
            runtime=self._runtime,
            persistence=self.persistence,
            definitions=self.definitions,
            writers=Writers(
                batches=self.batches,
                outbox=self._outbox_writer,
                dead_letters=self._dead_letters,
                archive_client=self._archive_client,
                clocks=clocks,
            ),
            watches=Watches(kafka=self.kafka, redis=redis, page=page),
            tree=Tree(
                snapshot=lambda: self.root.snapshot(),
                kill=lambda path: self.root.kill(path, "killed over HTTP"),
                stops=self._stops,
            ),
        ).server(self._doors)
        # Children stop in reverse order: HTTP answers the accepted requests, the intake commits the offsets of durable
        # events, the batches and the outbox are flushed. One budget bounds the sum, and no child may use all of it.
        half = settings.shutdown_seconds / 2
        hang = settings.hang_seconds
        return Supervisor(
            "bcs",
            [
                ChildSpec("metrics", metrics.run),
                ChildSpec(
                    "publisher",
                    publisher.run,
                    mailbox=self._publisher_mailbox,
                    hang_seconds=hang,
                    shutdown_seconds=half,
                ),
                *([self._archive_parts.spec] if self._archive_parts else []),
                ChildSpec("batches", self.batches.run, shutdown_seconds=half),
                ChildSpec("intake", intake.run, mailbox=self._intake_mailbox, hang_seconds=hang, shutdown_seconds=half),
                ChildSpec(
                    "http",
                    http.run,
                    shutdown_seconds=settings.shutdown_drain_seconds
                    + settings.http_body_seconds
                    + settings.request_deadline_seconds
                    + 1.0,
                ),
            ],
            intensity=RestartIntensity(settings.restart_max, settings.restart_period_seconds),
            backoff=self._backoff(),
            observer=TreeObserver(self.telemetry, self._gave_up),
            kill_grace_seconds=self._kill_grace(),
        )

    def _open_probe_listener(self) -> socket.socket | None:
        if self.settings.http_probe_port is None:
            return None
        try:
            return open_listener(self.settings, probes=True)
        except AddressUnavailable:
            self.listener.close()
            raise

    def _stops(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _wake_publisher(self) -> None:
        # One message that waits is as good as many.
        if not self._publisher_mailbox.depth:
            self._publisher_mailbox.send_nowait(OutboxGrew())

    def _backoff(self) -> Backoff:
        settings = self.settings
        return Backoff(
            initial_seconds=settings.restart_backoff_initial_seconds,
            maximum_seconds=settings.restart_backoff_maximum_seconds,
        )

    def _kill_grace(self) -> float:
        # An actor that is cancelled may first finish its round trip to Redis or PostgreSQL, and close its Kafka client.
        settings = self.settings
        return settings.redis_deadline_seconds + settings.database_deadline_seconds + settings.kill_grace_seconds
