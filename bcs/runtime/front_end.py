"""Puts the HTTP front end together: the use cases, the handlers of the routes, and the server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from bcs.actors.archive.client import ArchiveClient
from bcs.actors.clocks import Clocks
from bcs.actors.dead_letters import DeadLetters
from bcs.actors.messages import BatchCommand
from bcs.actors.metrics import MetricsPage
from bcs.actors.redis_probe import RedisStatus
from bcs.actors.runtime import Runtime
from bcs.actors.waking_outbox import WakingOutbox
from bcs.domain.law import CompletionLaw
from bcs.domain.token_buckets import TokenBuckets
from bcs.http.access import Access
from bcs.http.callers_file import KnownCallers
from bcs.http.described import encoded_openapi
from bcs.http.live_documents import LiveDocuments
from bcs.http.live_feed import LiveFeed
from bcs.http.page_files import documentation_files, page_files
from bcs.http.reloaded import Reloaded
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
from bcs.http.server import HttpServer
from bcs.http.tls import ServerTls
from bcs.kafka.lag_age import IntakeLag
from bcs.kafka.status import KafkaStatus
from bcs.ops.dlq.desk import ThreadedDesk
from bcs.storage.batch_index import BatchIndex
from bcs.storage.factory import Persistence
from bcs.storage.ports import POSTGRESQL, BatchSource
from bcs.supervision import DynamicSupervisor, Snapshot
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Where and how callers come in.

    :param listener: for all routes, or for all but the probes.
    :param probe_listener: for the probes, without TLS; None if they have no port of their own.
    :param known: the callers; None if everybody may do everything.
    :param tls: for connections to `listener`; None without TLS.
    """

    listener: socket.socket
    probe_listener: socket.socket | None
    known: Reloaded[KnownCallers] | None
    tls: Reloaded[ServerTls] | None

    @property
    def credentials(self) -> Sequence[Reloaded[Any]]:
        """The files of callers and certificates."""
        return [each for each in (self.known, self.tls) if each]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writers:
    """What requests change batches with, and leave messages and entries.

    :param archive_client: None without an archive.
    """

    batches: DynamicSupervisor[BatchCommand]
    outbox: WakingOutbox
    dead_letters: DeadLetters
    archive_client: ArchiveClient | None
    clocks: Clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Watches:
    """What is known of the service and its dependencies.

    :param page: the metrics.
    """

    kafka: KafkaStatus
    redis: RedisStatus
    page: MetricsPage


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The supervision tree, as the handlers see it.

    :param snapshot: takes a snapshot of it.
    :param kill: kills the actor at a path; False if the actor does not run now.
    :param stops: returns True once the service must stop.
    """

    snapshot: Callable[[], Snapshot]
    kill: Callable[[str], bool]
    stops: Callable[[], bool]


class FrontEnd:
    """Makes the server.

    :param definitions: the pipelines in use.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        persistence: Persistence,
        definitions: ActiveDefinitions,
        writers: Writers,
        watches: Watches,
        tree: Tree,
    ) -> None:
        self._runtime = runtime
        self._persistence = persistence
        self._definitions = definitions
        self._writers = writers
        self._watches = watches
        self._tree = tree

    def server(self, doors: Doors) -> HttpServer:
        """The server, with the handlers of all routes.

        :param doors: where callers come in.
        """
        settings, archive = self._runtime.settings, self._persistence.archive
        reader = BatchReader(store=self._persistence.store, store_name=self._persistence.store_name, archive=archive)
        new_batches = NewBatches(self._quotas(), self._runtime.telemetry)
        reading = anyio.Semaphore(settings.http_max_concurrent_reads)
        snapshots, store_name = self._persistence.snapshots, self._persistence.store_name

        explainer = PipelineExplainer(
            reader=SnapshotReader(source=snapshots, store_name=store_name, archive=archive),
            archive=archive.postgres if archive else None,
            require_registration=settings.require_registration,
            lag=self._lag,
            reading=reading,
            history_seconds=settings.request_deadline_seconds / 4,
        )
        resolver = PipelineResolver(
            runtime=self._runtime,
            definitions=self._definitions,
            reader=reader,
            explainer=explainer,
            announcer=Announcer(
                outbox=self._writers.outbox, archive=archive, archive_client=self._writers.archive_client
            ),
            dead_letters=self._writers.dead_letters,
            new_batches=new_batches,
        )
        reporter = PhaseReporter(
            runtime=self._runtime,
            store=self._persistence.store,
            reader=reader,
            batches=self._writers.batches,
            clocks=self._writers.clocks,
            new_batches=new_batches,
        )
        eraser = BatchEraser(
            runtime=self._runtime,
            store=self._persistence.store,
            store_name=self._persistence.store_name,
            archive=archive,
            outbox=self._persistence.outbox,
            index=self._persistence.index,
        )
        pipelines = PipelineHandlers(
            resolver, reporter, self._definitions, settings.http_page_bytes, self._runtime.tracer
        )
        health = HealthHandlers(
            settings=settings,
            store=self._persistence.store,
            archive=archive,
            redis_address=self._persistence.nodes.address if self._persistence.nodes else "",
            redis=self._watches.redis,
            kafka=self._watches.kafka,
            waits=self._runtime.waits,
            render_metrics=self._watches.page.render,
            snapshot=self._tree.snapshot,
            draining=self._tree.stops,
            definitions=self._definitions,
            credentials=doors.credentials,
        )
        actors = ActorHandlers(settings.chaos_enabled, self._tree.snapshot, self._tree.kill)
        batches = BatchHandlers(
            definitions=self._definitions,
            reader=reader,
            archive=archive.postgres if archive else None,
            reading=reading,
            page_bytes=settings.http_page_bytes,
        )
        invalidator = PhaseInvalidator(
            runtime=self._runtime,
            store=self._persistence.store,
            reader=reader,
            batches=self._writers.batches,
            clocks=self._writers.clocks,
            reading=reading,
        )
        ui = self._ui(doors, health) if settings.ui else None
        return HttpServer(
            settings=settings,
            telemetry=self._runtime.telemetry,
            listener=doors.listener,
            probe_listener=doors.probe_listener,
            known=doors.known,
            tls=doors.tls,
            handlers=[
                pipelines,
                DefinitionHandlers(definitions=self._definitions, reader=reader, reading=reading),
                batches,
                ExplanationHandlers(
                    definitions=self._definitions,
                    explainer=explainer,
                    planner=PipelinePlanner(
                        reader=BatchReader(store=snapshots, store_name=store_name, archive=archive),
                        finder=self._snapshot_finder,
                        require_registration=settings.require_registration,
                        lag=self._lag,
                        reading=reading,
                    ),
                    page_bytes=settings.http_page_bytes,
                    now=self._runtime.now,
                ),
                InvalidationHandlers(invalidator, self._definitions, self._runtime.tracer),
                FindingHandlers(
                    definitions=self._definitions,
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
            tracer=self._runtime.tracer,
        )

    def _ui(self, doors: Doors, health: HealthHandlers) -> UiHandlers:
        runtime, began = self._runtime, time.monotonic()
        documents = LiveDocuments(
            snapshot=self._tree.snapshot,
            sample=self._watches.page.sample,
            registry=runtime.telemetry.registry,
            health=health,
            lag=self._lag,
            now=runtime.now,
            clock=lambda: time.monotonic() - began,
        )
        feed = LiveFeed(documents.encoded, most=runtime.settings.ui_max_streams, clock=time.monotonic)
        runtime.telemetry.ui_streams.set_function(lambda: feed.open_streams)
        return UiHandlers(
            settings=runtime.settings,
            files=page_files(),
            feed=feed,
            access=Access(doors.known) if doors.known else None,
            has_archive=self._persistence.archive is not None,
            process=str(runtime.new_id()),
        )

    def _finder(self, law: CompletionLaw) -> BatchFinder:
        return self._finder_in(self._persistence.index, self._persistence.store, law)

    def _snapshot_finder(self, law: CompletionLaw) -> BatchFinder:
        return self._finder_in(self._persistence.snapshot_index, self._persistence.snapshots, law)

    def _finder_in(self, index: BatchIndex, store: BatchSource, law: CompletionLaw) -> BatchFinder:
        settings, archive = self._runtime.settings, self._persistence.archive
        return BatchFinder(
            index=index,
            source=POSTGRESQL if archive else self._persistence.store_name,
            summary=archived_summaries(archive.postgres, law) if archive else partial(store.summary, law=law),
            law=law,
            seconds=settings.request_deadline_seconds / 4,
            page_bytes=settings.http_page_bytes,
        )

    def _lag(self) -> IntakeLag:
        return self._watches.kafka.intake_lag(int(self._runtime.now().timestamp() * 1000))

    def _rates(self) -> TokenBuckets | None:
        settings = self._runtime.settings
        if settings.http_rate_per_second is None:
            return None
        return TokenBuckets(
            per_second=settings.http_rate_per_second, burst=settings.http_rate_burst, clock_ns=time.monotonic_ns
        )

    def _quotas(self) -> TokenBuckets | None:
        a_minute = self._runtime.settings.http_new_batches_per_minute
        if a_minute is None:
            return None
        return TokenBuckets(per_second=a_minute / 60, burst=a_minute, clock_ns=time.monotonic_ns)
