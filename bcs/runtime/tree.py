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
from bcs.domain.token_buckets import TokenBuckets
from bcs.http.access import Access, callers_of
from bcs.http.described import encoded_openapi
from bcs.http.live_documents import LiveDocuments
from bcs.http.live_feed import LiveFeed
from bcs.http.page_files import documentation_files, page_files
from bcs.http.routes.actors import ActorHandlers
from bcs.http.routes.batches import BatchHandlers
from bcs.http.routes.dead_letters import DeadLetterHandlers
from bcs.http.routes.definitions import DefinitionHandlers
from bcs.http.routes.description import DescriptionHandlers
from bcs.http.routes.documentation import DocumentationHandlers
from bcs.http.routes.erasures import ErasureHandlers
from bcs.http.routes.explanations import ExplanationHandlers
from bcs.http.routes.finding import FindingHandlers
from bcs.http.routes.health import HealthHandlers
from bcs.http.routes.invalidation import InvalidationHandlers
from bcs.http.routes.pipelines import PipelineHandlers
from bcs.http.routes.ui import UiHandlers
from bcs.http.server import AddressUnavailable, HttpServer, open_listener
from bcs.http.tls import tls_of
from bcs.kafka.clients import KafkaClients
from bcs.kafka.lag_age import IntakeLag
from bcs.kafka.status import KafkaStatus
from bcs.observability.telemetry import Telemetry
from bcs.observability.tracer_factory import open_tracer
from bcs.observability.tracing import Tracer
from bcs.observability.tree_observer import TreeObserver, count_restarts_from_zero
from bcs.observability.waits import Waits
from bcs.ops.dlq.desk import ThreadedDesk
from bcs.runtime.archive import FIRST_PROBES, ArchiveParts, archive_parts
from bcs.storage.batch_index import BatchIndex
from bcs.storage.factory import open_persistence
from bcs.storage.ports import POSTGRESQL, BatchSource
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
from bcs.usecases.announcer import Announcer
from bcs.usecases.batch_reader import BatchReader, SnapshotReader
from bcs.usecases.erase_batch import BatchEraser
from bcs.usecases.explain_pipeline import PipelineExplainer
from bcs.usecases.find_batches import BatchFinder, archived_summaries
from bcs.usecases.invalidate_phases import PhaseInvalidator
from bcs.usecases.new_batches import NewBatches
from bcs.usecases.plan_pipelines import PipelinePlanner
from bcs.usecases.report_phase import PhaseReporter
from bcs.usecases.resolve_pipeline import PipelineResolver
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
        self._known_callers, self._tls = callers_of(settings), tls_of(settings)
        self.persistence = open_persistence(
            settings, law=self.definitions.current.law, summary_made=self._store_summary
        )
        self.listener = open_listener(settings)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.probe_listener = self._open_probe_listener()
        self.probe_address = self.address if self.probe_listener is None else self.probe_listener.getsockname()[:2]
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
            commit_slots=anyio.Semaphore(max(1, settings.redis_max_connections // 4)),
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
        reader = BatchReader(store=self.store, store_name=self.persistence.store_name, archive=archive)
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
        credentials = [each for each in (self._known_callers, self._tls) if each]
        in_flight = InFlight(settings=settings, deliver=self.batches.deliver)
        page = MetricsPage(
            runtime=self._runtime,
            archive=archive,
            kafka=self.kafka,
            outbox=outbox,
            in_flight=lambda: in_flight.messages,
            snapshot=lambda: self.root.snapshot(),
            circuit=self.persistence.circuit,
            credentials=lambda: {each.variable: each.problem for each in credentials},
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
        new_batches = NewBatches(self._quotas(), self.telemetry)
        reading = anyio.Semaphore(settings.http_max_concurrent_reads)
        snapshots, store_name = self.persistence.snapshots, self.persistence.store_name

        def lag() -> IntakeLag:
            return self.kafka.intake_lag(int(self._runtime.now().timestamp() * 1000))

        explainer = PipelineExplainer(
            reader=SnapshotReader(source=snapshots, store_name=store_name, archive=archive),
            archive=archive.postgres if archive else None,
            require_registration=settings.require_registration,
            lag=lag,
            reading=reading,
            history_seconds=settings.request_deadline_seconds / 4,
        )
        resolver = PipelineResolver(
            runtime=self._runtime,
            definitions=self.definitions,
            reader=reader,
            explainer=explainer,
            announcer=Announcer(outbox=self._outbox_writer, archive=archive, archive_client=self._archive_client),
            dead_letters=self._dead_letters,
            new_batches=new_batches,
        )
        reporter = PhaseReporter(
            runtime=self._runtime,
            store=self.store,
            reader=reader,
            batches=self.batches,
            clocks=clocks,
            new_batches=new_batches,
        )
        eraser = BatchEraser(
            runtime=self._runtime,
            store=self.store,
            store_name=self.persistence.store_name,
            archive=archive,
            outbox=self.outbox,
            index=self.persistence.index,
        )
        pipelines = PipelineHandlers(resolver, reporter, self.definitions, settings.http_page_bytes, self._tracer)
        health = HealthHandlers(
            settings=settings,
            store=self.store,
            archive=archive,
            redis_address=self.persistence.nodes.address if self.persistence.nodes else "",
            redis=redis,
            kafka=self.kafka,
            waits=self.waits,
            render_metrics=page.render,
            snapshot=lambda: self.root.snapshot(),
            draining=self._stops,
            definitions=self.definitions,
            credentials=credentials,
        )
        actors = ActorHandlers(
            settings.chaos_enabled, lambda: self.root.snapshot(), lambda path: self.root.kill(path, "killed over HTTP")
        )
        batches = BatchHandlers(
            definitions=self.definitions,
            reader=reader,
            archive=archive.postgres if archive else None,
            reading=reading,
            page_bytes=settings.http_page_bytes,
        )
        invalidator = PhaseInvalidator(
            runtime=self._runtime,
            store=self.store,
            reader=reader,
            batches=self.batches,
            clocks=clocks,
            reading=reading,
        )
        ui = self._ui(page, health) if settings.ui else None
        http = HttpServer(
            settings=settings,
            telemetry=self.telemetry,
            listener=self.listener,
            probe_listener=self.probe_listener,
            known=self._known_callers,
            tls=self._tls,
            handlers=[
                pipelines,
                DefinitionHandlers(definitions=self.definitions, reader=reader, reading=reading),
                batches,
                ExplanationHandlers(
                    definitions=self.definitions,
                    explainer=explainer,
                    planner=PipelinePlanner(
                        reader=BatchReader(store=snapshots, store_name=store_name, archive=archive),
                        finder=self._snapshot_finder,
                        require_registration=settings.require_registration,
                        lag=lag,
                        reading=reading,
                    ),
                    page_bytes=settings.http_page_bytes,
                    now=self._runtime.now,
                ),
                InvalidationHandlers(invalidator, self.definitions, self._tracer),
                FindingHandlers(
                    definitions=self.definitions,
                    finder=self._finder,
                    archive=archive.postgres if archive else None,
                    reading=reading,
                    now=self._runtime.now,
                ),
                ErasureHandlers(eraser),
                health,
                actors,
                DescriptionHandlers(encoded_openapi),
                # A call must end before its request is given up, to say what became of it.
                DeadLetterHandlers(ThreadedDesk(settings, 0.8 * settings.request_deadline_seconds), pipelines),
                *([ui] if ui else []),
                *([DocumentationHandlers(documentation_files)] if settings.docs else []),
            ],
            feed=ui.feed if ui else None,
            rates=self._rates(),
            tracer=self._tracer,
        )
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

    def _ui(self, page: MetricsPage, health: HealthHandlers) -> UiHandlers:
        runtime, began = self._runtime, time.monotonic()
        documents = LiveDocuments(
            snapshot=lambda: self.root.snapshot(),
            sample=page.sample,
            registry=self.telemetry.registry,
            health=health,
            lag=lambda: self.kafka.intake_lag(int(runtime.now().timestamp() * 1000)),
            now=runtime.now,
            clock=lambda: time.monotonic() - began,
        )
        feed = LiveFeed(documents.encoded, most=self.settings.ui_max_streams, clock=time.monotonic)
        self.telemetry.ui_streams.set_function(lambda: feed.open_streams)
        return UiHandlers(
            settings=self.settings,
            files=page_files(),
            feed=feed,
            access=Access(self._known_callers) if self._known_callers else None,
            has_archive=self.persistence.archive is not None,
            process=str(runtime.new_id()),
        )

    def _finder(self, law: CompletionLaw) -> BatchFinder:
        return self._finder_in(self.persistence.index, self.store, law)

    def _snapshot_finder(self, law: CompletionLaw) -> BatchFinder:
        return self._finder_in(self.persistence.snapshot_index, self.persistence.snapshots, law)

    def _finder_in(self, index: BatchIndex, store: BatchSource, law: CompletionLaw) -> BatchFinder:
        settings, archive = self.settings, self.persistence.archive
        return BatchFinder(
            index=index,
            source=POSTGRESQL if archive else self.persistence.store_name,
            summary=archived_summaries(archive.postgres, law) if archive else partial(store.summary, law=law),
            law=law,
            seconds=settings.request_deadline_seconds / 4,
            page_bytes=settings.http_page_bytes,
        )

    def _open_probe_listener(self) -> socket.socket | None:
        if self.settings.http_probe_port is None:
            return None
        try:
            return open_listener(self.settings, probes=True)
        except AddressUnavailable:
            self.listener.close()
            raise

    def _rates(self) -> TokenBuckets | None:
        settings = self.settings
        if settings.http_rate_per_second is None:
            return None
        return TokenBuckets(
            per_second=settings.http_rate_per_second, burst=settings.http_rate_burst, clock_ns=time.monotonic_ns
        )

    def _quotas(self) -> TokenBuckets | None:
        a_minute = self.settings.http_new_batches_per_minute
        if a_minute is None:
            return None
        return TokenBuckets(per_second=a_minute / 60, burst=a_minute, clock_ns=time.monotonic_ns)

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
