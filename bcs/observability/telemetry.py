"""The metrics of one running service. Every label takes its values from a small, closed set."""

from __future__ import annotations

from functools import cache
from math import nan
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from bcs.errors import DeadLetterReason
from bcs.wire import topics
from bcs.wire.dead_letters.encode import RESOLUTION_FAILED

# Without a second series for each counter with its creation time, which no dashboard or alert uses.
disable_created_metrics()  # type: ignore[no-untyped-call]

LOG_RECORDS_DROPPED = Counter(
    "bcs_log_records_dropped_total",
    "Log records dropped because the reader was too slow or the disk was full.",
    registry=None,
)
"""One counter for the whole process, because it has one log."""

CONNECTIONS_PER_ADDRESS, NEW_BATCHES, RATE = "connections_per_address", "new_batches", "rate"
"""The limits for each caller, as a label of `Telemetry.http_limited`."""

RELOADED, UNCHANGED, REFUSED = "reloaded", "unchanged", "refused"
"""The outcomes of a reload of the pipeline definitions, as a label of `Telemetry.definitions_reloads`."""

CIRCUIT_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Telemetry:
    """All metrics, in their own registry, which outlives every actor."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(LOG_RECORDS_DROPPED)
        # Frequent counters are cached functions, because looking up a series by its labels costs more than counting.
        self.resolutions = cache(
            Counter(
                "bcs_pipeline_resolutions_total", "Pipeline resolutions by outcome.", ["status"], registry=registry
            ).labels
        )
        self.answers = cache(
            Counter(
                "bcs_pipeline_answers_total",
                "Pipeline resolutions that were answered, by the store that the batch was read from.",
                ["source"],
                registry=registry,
            ).labels
        )
        self.refusals = Counter(
            "bcs_pipeline_refusals_total", "Pipeline resolutions that were refused.", ["reason"], registry=registry
        )
        self.phases_pruned = cache(
            Counter(
                "bcs_phases_pruned_total",
                "Phases pruned from a pipeline because they are complete.",
                ["phase"],
                registry=registry,
            ).labels
        )
        self.definitions_info = Gauge(
            "bcs_pipeline_definitions_info",
            "1 for the pipeline definitions in use: the version in their file, and the hash of their content.",
            ["version", "hash"],
            registry=registry,
        )
        self.definitions_reloads = Counter(
            "bcs_pipeline_definitions_reloads_total",
            "Reloads of the pipeline definitions by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.definitions_outdated = Gauge(
            "bcs_pipeline_definitions_outdated",
            "1 if the last reload was refused, so that older pipeline definitions stay in use.",
            registry=registry,
        )
        self.phases_invalidated = cache(
            Counter(
                "bcs_phases_invalidated_total",
                "Phases of batches whose completions an operator took back.",
                ["phase"],
                registry=registry,
            ).labels
        )
        self.http_requests = Counter(
            "bcs_http_requests_total", "HTTP requests.", ["method", "endpoint", "status_code"], registry=registry
        )
        self.http_duration = Histogram(
            "bcs_http_request_duration_seconds",
            "Time from the request to its response.",
            ["method", "endpoint"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.http_in_flight = Gauge(
            "bcs_http_requests_in_flight",
            "Requests whose head was received and that have no response yet.",
            registry=registry,
        )
        self.http_connections = Gauge("bcs_http_connections", "Open HTTP connections.", registry=registry)
        self.http_bodies_awaited = Gauge(
            "bcs_http_bodies_awaited",
            "Requests in flight whose body was not received yet.",
            registry=registry,
        )
        self.http_held_bytes = Gauge(
            "bcs_http_held_bytes",
            "Bytes of request bodies, and of responses that callers have not read yet.",
            registry=registry,
        )
        self.ui_streams = Gauge("bcs_ui_streams", "Open pages `/ui`, by their streams.", registry=registry)
        self.http_callers_dropped = Counter(
            "bcs_http_callers_dropped_total",
            "Callers whose connection was closed, by what was waited for: a request, its head, its body, or the "
            "reading of a response.",
            ["waited_for", "reason"],
            registry=registry,
        )
        self.http_limited = Counter(
            "bcs_http_limited_total",
            "Requests and connections that were refused because of a limit for each caller.",
            ["limit"],
            registry=registry,
        )
        self.events = cache(
            Counter(
                "bcs_events_processed_total",
                "Kafka messages processed.",
                ["event_type", "outcome"],
                registry=registry,
            ).labels
        )
        self.commit_conflicts = Counter(
            "bcs_redis_commit_conflicts_total",
            "Attempts to write that failed because of another writer.",
            registry=registry,
        )
        self.commit_fallbacks = Counter(
            "bcs_redis_commit_fallbacks_total",
            "Writes that lost every attempt: facts were merged by script then, and summaries were not stored.",
            registry=registry,
        )
        self.dead_letters = Counter(
            "bcs_dead_letters_total", "Dead letters written, by source topic.", ["topic", "reason"], registry=registry
        )
        self.published = cache(
            Counter(
                "bcs_outbox_published_total", "Messages that Kafka acknowledged.", ["kind"], registry=registry
            ).labels
        )
        self.parked = Counter(
            "bcs_outbox_parked_total",
            "Messages set aside because Kafka will never accept them.",
            ["kind"],
            registry=registry,
        )
        self.publish_failures = Counter(
            "bcs_outbox_publish_failures_total", "Attempts to publish that failed.", ["kind"], registry=registry
        )
        self.outbox_backlog = Gauge(
            "bcs_outbox_backlog",
            "Messages that wait for Kafka, in Redis and PostgreSQL; the last known number while these are unreachable.",
            registry=registry,
        )
        self.outbox_oldest = Gauge(
            "bcs_outbox_oldest_seconds",
            "Time since the oldest message that waits for Kafka was accepted; retries do not reset it.",
            registry=registry,
        )
        self.archive_backlog = Gauge(
            "bcs_archive_backlog", "Entries that wait in Redis for PostgreSQL.", registry=registry
        )
        self.archive_written = Counter(
            "bcs_archive_entries_written_total", "Entries written to PostgreSQL.", registry=registry
        )
        self.archive_queued = Counter(
            "bcs_archive_entries_queued_total",
            "Entries queued in Redis while PostgreSQL was unreachable.",
            registry=registry,
        )
        self.archive_parked = Counter(
            "bcs_archive_entries_parked_total",
            "Entries set aside because PostgreSQL will never accept them.",
            registry=registry,
        )
        self.history_dropped = Counter(
            "bcs_history_entries_dropped_total",
            "History entries of resolutions dropped because too many entries waited for PostgreSQL.",
            registry=registry,
        )
        self.actor_waits = Gauge(
            "bcs_actor_waits_seconds",
            "How long an actor has been waiting for a dependency; 0 if it is not waiting.",
            ["actor"],
            registry=registry,
        )
        self.redis_up = Gauge(
            "bcs_redis_up", "1 if Redis responds and refuses no command that BCS needs.", ["store"], registry=registry
        )
        # The label keeps the series away where no archive is configured: an alert on 0 must not fire then.
        self.archive_up = Gauge(
            "bcs_archive_up", "1 if PostgreSQL responds and takes writes.", ["store"], registry=registry
        )
        self.actor_restarts = Counter("bcs_actor_restarts_total", "Restarts of an actor.", ["actor"], registry=registry)
        self.restart_intensity_used = Gauge(
            "bcs_restart_intensity_used_ratio",
            "Restarts within the period, as a share of the limit: at 1 the next one makes the supervisor give up.",
            ["supervisor"],
            registry=registry,
        )
        self.mailbox_depth = Gauge(
            "bcs_mailbox_depth", "Messages in an actor's mailbox, unacked ones included.", ["actor"], registry=registry
        )
        self.mailbox_oldest = Gauge(
            "bcs_mailbox_oldest_message_seconds",
            "Age of the oldest message that an actor has not acked.",
            ["actor"],
            registry=registry,
        )
        self.batch_actors = Gauge("bcs_batch_actors", "Batches that are being written.", registry=registry)
        self.kafka_up = Gauge(
            "bcs_kafka_up",
            "1 if the brokers report the offsets of the consumer group; while 0, bcs_kafka_consumer_lag, "
            "bcs_kafka_committed_timestamp_seconds and bcs_dead_letters_waiting keep their last values.",
            registry=registry,
        )
        self.consumer_lag = Gauge(
            "bcs_kafka_consumer_lag",
            "Messages after the committed offset of the consumer group. Each replica reports all partitions: "
            "use the maximum over the replicas.",
            ["topic", "partition"],
            registry=registry,
        )
        self.intake_lag = Gauge(
            "bcs_kafka_intake_lag_seconds",
            "How long the oldest event has waited that the consumer group has not committed. Grows while the brokers "
            "do not answer; NaN before their first answer. Each replica reports all partitions.",
            registry=registry,
        )
        self.committed_timestamp = Gauge(
            "bcs_kafka_committed_timestamp_seconds",
            "Kafka timestamp of the last message that the consumer group committed. Each replica reports all "
            "partitions.",
            ["topic", "partition"],
            registry=registry,
        )
        self.partition_stalled = Gauge(
            "bcs_kafka_partition_stalled",
            "1 for each partition of this replica that can't be read, 0 for its other partitions.",
            ["topic", "partition"],
            registry=registry,
        )
        self.events_missed = Counter(
            "bcs_kafka_events_missed_total",
            "Messages that Kafka removed before they were read.",
            ["topic"],
            registry=registry,
        )
        self.dead_letters_waiting = Gauge(
            "bcs_dead_letters_waiting",
            "Messages on a dead-letter topic: waiting dead letters, and replayed ones with a marker each, until they "
            "are purged or expire. Each replica reports all topics.",
            ["topic"],
            registry=registry,
        )
        self.intake_in_flight = Gauge(
            "bcs_intake_in_flight", "Messages that are read and not yet durable.", registry=registry
        )
        self.credentials_refused = Gauge(
            "bcs_credentials_unusable",
            "1 if the files of a setting (callers, certificates) can't be used, or have expired.",
            ["setting"],
            registry=registry,
        )
        self.circuit = Gauge(
            "bcs_circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["dependency"], registry=registry
        )
        self.event_loop_lag = Gauge(
            "bcs_event_loop_lag_seconds", "Delay of the last timer of the event loop.", registry=registry
        )
        # Series that alerts look at exist from the start: an increase from nothing to one would not be seen.
        for status in ("success", "failure"):
            self.resolutions(status)
        for outcome in (RELOADED, UNCHANGED, REFUSED):
            self.definitions_reloads.labels(outcome)
        for topic in topics.CONSUMED:
            for reason in get_args(DeadLetterReason):
                self.dead_letters.labels(topic, reason)
            self.events_missed.labels(topic)
        self.dead_letters.labels(topics.RESOLUTION, RESOLUTION_FAILED)
        for kind in ("phase_skipped", "dead_letter"):
            self.parked.labels(kind)
            self.publish_failures.labels(kind)
            self.published(kind)
        for limit in (CONNECTIONS_PER_ADDRESS, NEW_BATCHES, RATE):
            self.http_limited.labels(limit)
        self.circuit.labels("redis").set(0)
        # Unknown until the first measurement.
        self.outbox_backlog.set(nan)
        self.outbox_oldest.set(nan)
        self.intake_lag.set(nan)
