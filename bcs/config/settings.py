"""The settings, from environment variables with the prefix `BCS_`. docs/settings.md is generated from this module."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bcs.config import store_urls
from bcs.config.kafka_security import KafkaSecurity
from bcs.config.secrets import Secret, SecretFiles, usable
from bcs.config.store_urls import StoreUrl
from bcs.errors import ConfigurationError


class Environment(StrEnum):
    """Where the service runs."""

    TESTING = "testing"
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class InvalidSettings(ConfigurationError):
    """Settings that the service can't start with.

    :param problems: for each, the variable's name and what is wrong with it.
    """

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        lines = "".join(f"\n  {variable}: {problem}" for variable, problem in problems)
        super().__init__(f"the settings are not usable:{lines}")
        self.problems = problems


def _without_unit(value: object) -> object:
    # The platform's deployments write some times as "30s".
    return value.strip().removesuffix("s") if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _trimmed(value: object) -> object:
    # Values from files often end with a line break.
    return value.strip() if isinstance(value, str) else value


Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, BeforeValidator(_without_unit), Field(gt=0, allow_inf_nan=False)]
SecretText = Annotated[Secret, BeforeValidator(usable), Field(min_length=1)]
OptionalSecret = Annotated[Secret | None, BeforeValidator(lambda value: usable(value) or None)]
Text = Annotated[str, BeforeValidator(_trimmed), Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper),
]


def _at_most(default: float, share: float, other: str) -> Callable[[dict[str, Any]], float]:
    """A default that is limited by another setting, so that the other setting can be lowered alone.

    :param share: the default is at most this share of the other setting.
    :param other: the name of the other setting, which must be declared before.
    """
    return lambda known: min(default, share * known[other])


DAY_SECONDS = 86_400
# The address for local callers of a service that listens at all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
HANG_FACTOR = 2.5


class CommandSettings(BaseSettings):
    """What commands need that send requests to a running service."""

    model_config = SettingsConfigDict(
        env_prefix="BCS_",
        # Deployments pass on variables that may be empty: `BCS_X=${X:-}`.
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See `BaseSettings`: a secret's file wins over its variable, so that the two together can be refused."""
        return init_settings, SecretFiles(settings_cls), env_settings

    token: Annotated[Secret | None, BeforeValidator(lambda value: usable(value) or None)] = Field(
        None, description="the token that commands such as `bcs resolve` send to the service"
    )
    command_cafile: Path | None = Field(
        None, description="the certificates that commands trust; if unset, those of the operating system"
    )
    command_certfile: Path | None = Field(
        None, description="the client certificate of commands, with its key unless that is in `BCS_COMMAND_KEYFILE`"
    )
    command_keyfile: Path | None = Field(None, description="the key of the client certificate of commands")


class Settings(CommandSettings):
    """Everything that a deployment may want to change."""

    environment: Environment = Field(
        Environment.DEVELOPMENT, description="`testing`, `development` or `production`; production logs JSON"
    )
    log_level: LogLevel = Field("INFO", description="the least severe level that is logged")
    pipeline_config_path: Path | None = Field(
        None, description="the file of pipelines; if unset, those that ship with BCS"
    )
    keep_unknown_phases: bool = Field(
        False,
        description="keep facts about phases that neither the pipeline file nor the platform's list has, instead of "
        "a dead letter: for the time in which replicas have different pipeline files",
    )
    secrets_dir: Path | None = Field(
        None,
        description="a directory with a file for each secret, named as its variable, as Kubernetes mounts a secret; "
        "a variable that is set wins",
    )
    use_mock_repository: bool = Field(
        False, description="for development: keep the state in this process's memory instead of Redis"
    )
    require_registration: bool = Field(
        False,
        description="an unregistered batch is never complete by the essays seen so far; a phase report still counts",
    )
    instance_name: str | None = Field(
        None,
        min_length=1,
        description="the name of this replica in logs and in the outbox; if unset, the name of the host",
    )
    chaos_enabled: bool = Field(False, description="let `POST /internal/v1/actors/{name}/kill` kill actors")

    http_host: str = Field("0.0.0.0", description="the address to listen on")  # noqa: S104 (as the brief has it)
    http_port: Port = Field(4002, description="the port to listen on; 0 for any free port")
    http_probe_port: Port | None = Field(
        None,
        description="a port of its own for `/healthz`, `/readyz` and `/metrics`, without TLS; "
        "if unset, they are on `BCS_HTTP_PORT`",
    )
    http_tokens_file: Path | None = Field(
        None,
        description="the file of callers: names, tokens and scopes; if unset, everybody may do everything",
    )
    http_tls_certfile: Path | None = Field(
        None, description="the certificate of the service, with its chain; if unset, the service speaks plain HTTP"
    )
    http_tls_keyfile: Path | None = Field(None, description="the key of the certificate, if it is in another file")
    http_tls_key_password: Annotated[Secret | None, BeforeValidator(lambda value: usable(value) or None)] = Field(
        None, description="the password of the key"
    )
    http_tls_client_cafile: Path | None = Field(
        None,
        description="the certificates of the authorities whose clients may connect; "
        "if set, callers must have a client certificate",
    )
    http_timeout: Seconds = Field(
        30.0,
        description="how long callers wait, in seconds; a complete request is answered earlier",
    )
    http_backlog_connections: Count = Field(1024, description="connections that wait while the HTTP actor restarts")
    http_max_connections: Count | None = Field(
        None,
        description="the maximum number of connections; if unset, what the limit of open files leaves, 2048 at most",
    )
    http_max_connections_per_address: Count | None = Field(
        None,
        description="the maximum number of connections from one IPv4 address or one IPv6 /64; if unset, there is no "
        "limit. Callers behind a proxy share an address",
    )
    http_rate_per_second: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = Field(
        None,
        description="the number of requests a second that each caller may send on average; more are refused with 429; "
        "if unset, there is no limit. A caller is its name, or its address while it has no name",
    )
    http_rate_burst: Count = Field(
        default_factory=lambda known: max(1, ceil(known["http_rate_per_second"] or 0)),
        description="the number of requests that a caller may send at once after a pause; "
        "by default those of one second",
    )
    http_new_batches_per_minute: Count | None = Field(
        None,
        description="the number of requests a minute that each caller may send about batches that BCS does not know; "
        "more are refused with 429; if unset, there is no limit",
    )
    http_max_concurrent_requests: Count = Field(
        512,
        description="the maximum number of requests at a time whose body was received; more are refused with 503",
    )
    http_max_body_bytes: Count = Field(1024 * 1024, description="a larger request body is refused with 413")
    http_max_held_bytes: Count = Field(
        64 * 1024 * 1024,
        description="the maximum size of all bodies and responses in memory; beyond it the slowest callers are dropped",
    )
    http_max_concurrent_reads: Count = Field(
        4,
        description="the maximum number of batches and histories read at a time for callers; more wait for their turn",
    )
    http_page_bytes: Annotated[int, Field(ge=10_000)] = Field(
        1024 * 1024,
        description="the approximate maximum size of a response about a batch; a larger batch takes several pages",
    )
    http_head_seconds: Seconds = Field(
        5.0, description="how long the head of a request may take; then the connection is closed"
    )
    http_body_seconds: Seconds = Field(
        5.0, description="how long the body of a request may take after its head; then the request is refused with 408"
    )
    http_idle_seconds: Seconds = Field(
        75.0, description="how long a connection may stay without a request; then it is closed"
    )
    http_send_seconds: Seconds = Field(
        10.0, description="how long a caller may take to read its response; then the connection is closed"
    )
    ui: bool = Field(True, description="serve the page `/ui`, which shows the service as it runs")
    ui_max_streams: Count = Field(
        16, description="the maximum number of open pages `/ui`; a further one shows that it waits for a place"
    )
    docs: bool = Field(
        True, description="serve the page `/docs`, which shows the API, where the extra `docs` is installed"
    )
    http_access_log: bool = Field(False, description="log every request")
    http_linger_seconds: Seconds = Field(
        0.1, description="how long an accepted connection may take to send its request after a kill of the HTTP actor"
    )
    http_kill_grace_seconds: Seconds = Field(
        1.0, description="how long requests in flight may take to end after a kill of the HTTP actor"
    )
    request_deadline_seconds: Seconds = Field(
        default_factory=_at_most(5.0, 0.8, "http_timeout"),
        description="how long a request may take once its body was received; then it gets a 503; "
        "by default at most 0.8 of `BCS_HTTP_TIMEOUT`",
    )
    retry_after_seconds: Count = Field(1, description="the value of the header `Retry-After`")

    kafka_bootstrap_servers: Text = Field("kafka:9092", description="host:port, comma separated")
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = Field("PLAINTEXT", description="`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`: TLS, and a login by SASL")
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None, BeforeValidator(_upper)
    ] = Field(None, description="`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`")
    kafka_sasl_username: Text | None = Field(None, description="the user, for `PLAIN` and `SCRAM-…`")
    kafka_sasl_password: OptionalSecret = Field(None, description="the user's password")
    kafka_ssl_cafile: Path | None = Field(
        None, description="PEM file of the CAs that BCS trusts; if unset, those of the system"
    )
    kafka_ssl_certfile: Path | None = Field(
        None, description="PEM file of the client certificate with its chain, where brokers ask for one"
    )
    kafka_ssl_keyfile: Path | None = Field(
        None, description="PEM file of the certificate's key; if unset, the key is in the file of the certificate"
    )
    kafka_ssl_key_password: OptionalSecret = Field(None, description="the password of an encrypted key")
    kafka_ssl_check_hostname: bool = Field(
        True, description="refuse a broker whose certificate is for another host; the CA is checked in any case"
    )
    kafka_oauth_token_file: Path | None = Field(
        None, description="the file of the token for `OAUTHBEARER`; it is read for each login"
    )
    kafka_oauth_token_url: Text | None = Field(
        None, description="instead of a file: the endpoint that gives tokens for the client's credentials (RFC 6749)"
    )
    kafka_oauth_client_id: Text | None = Field(None, description="the client's name at that endpoint")
    kafka_oauth_client_secret: OptionalSecret = Field(None, description="the client's secret")
    kafka_oauth_scope: Text | None = Field(None, description="the scope of the token")
    kafka_oauth_cafile: Path | None = Field(
        None, description="PEM file of the CAs of that endpoint; if unset, those of the system"
    )
    kafka_consumer_group_id: str = Field("bcs-event-consumer", min_length=1, description="the consumer group")
    kafka_auto_offset_reset: Literal["earliest", "latest"] = Field(
        "earliest", description="where a new group begins; with `earliest`, it reads all messages that Kafka still has"
    )
    kafka_enable_idempotence: bool = Field(
        True, description="use the idempotent producer; some brokers do not support it"
    )
    kafka_session_timeout_seconds: Seconds = Field(
        30.0, description="how long a replica may be silent before it loses its partitions"
    )
    kafka_heartbeat_interval_seconds: Seconds = Field(
        default_factory=_at_most(3.0, 1 / 3, "kafka_session_timeout_seconds"),
        description="the time between heartbeats to the consumer group; "
        "by default at most a third of `BCS_KAFKA_SESSION_TIMEOUT_SECONDS`",
    )
    kafka_request_timeout_seconds: Seconds = Field(10.0, description="how long one request to a broker may take")
    kafka_metadata_max_age_seconds: Seconds = Field(
        30.0, description="how long it takes at most to notice new topics and partitions"
    )
    kafka_probe_interval_seconds: Seconds = Field(
        2.0, description="the time between probes of Kafka, which also measure the lag"
    )
    kafka_partition_retry_maximum_seconds: Seconds = Field(
        30.0, description="the longest wait before a partition that can't be read is retried"
    )
    kafka_max_poll_records: Count = Field(500, description="messages taken from Kafka at a time")
    kafka_max_message_bytes: Annotated[int, Field(ge=100_000)] = Field(
        1_000_000, description="the largest message that the broker accepts"
    )
    intake_max_in_flight: Count = Field(
        5000, description="the maximum number of messages that are read and not yet durable; then reading pauses"
    )
    intake_max_in_flight_bytes: Count = Field(64 * 1024 * 1024, description="the same, in bytes")
    intake_max_in_flight_facts: Count = Field(
        250_000, description="the same, in facts: an event that lists 100 essays has about 100"
    )
    max_event_bytes: Annotated[int, Field(ge=1024)] = Field(
        1024 * 1024, description="an event that is larger, decompressed, becomes a dead letter without being parsed"
    )
    max_essays_per_batch: Count = Field(
        20_000, description="an event that would give a batch more essays becomes a dead letter"
    )
    max_clock_skew_seconds: Seconds = Field(
        600.0, description="an event whose time is further ahead of the clocks of BCS and Redis becomes a dead letter"
    )
    max_intake_lag_seconds: Seconds | None = Field(
        None,
        description="`pipelines/define` answers 503 while events have waited longer to be read; not set means no limit",
    )
    intake_commit_interval_seconds: Seconds = Field(0.5, description="the time between offset commits")
    intake_retry_seconds: Seconds = Field(1.0, description="the wait before the intake reconnects to Kafka")
    intake_drain_timeout_seconds: Seconds = Field(
        5.0,
        description="how long a stop waits for the next message to become durable; the rest is left to other replicas",
    )

    redis_url: SecretText = Field(
        default_factory=lambda: Secret("redis://localhost:6379"),
        description="`redis://`, `rediss://` or `unix://`; `redis+cluster://` or `redis+sentinel://` with several "
        "servers, `rediss+…` with TLS",
    )
    redis_username: OptionalSecret = Field(None, description="the user, if it is not in `BCS_REDIS_URL`")
    redis_password: OptionalSecret = Field(None, description="the password, if it is not in `BCS_REDIS_URL`")
    redis_sentinel_username: OptionalSecret = Field(None, description="the user at the Sentinels")
    redis_sentinel_password: OptionalSecret = Field(None, description="the password at the Sentinels")
    redis_ttl_seconds: Annotated[int, Field(ge=1, le=10 * 365 * 86_400)] = Field(
        604_800, description="how long a batch is kept after its last event"
    )
    erased_batches_seconds: Annotated[int, Field(ge=1, le=10 * 365 * 86_400)] = Field(
        604_800, description="how long events about an erased batch are dropped, and requests about it refused"
    )
    redis_key_prefix: str = Field("bcs:", description="the prefix of every key")
    redis_max_connections: Count = Field(
        32, description="the maximum number of concurrent round trips to Redis; to each master of a cluster"
    )
    redis_deadline_seconds: Seconds = Field(
        default_factory=_at_most(2.0, 0.5, "request_deadline_seconds"),
        description="how long a round trip to Redis may take; "
        "by default at most half of `BCS_REQUEST_DEADLINE_SECONDS`",
    )
    redis_breaker_failures: Count = Field(5, description="consecutive failures that open the circuit breaker")
    redis_breaker_open_seconds: Seconds = Field(
        1.0, description="how long the circuit breaker stays open before Redis is tried again"
    )
    redis_probe_interval_seconds: Seconds = Field(
        1.0, description="the time between probes of Redis; liveness and readiness use the result of the last one"
    )
    redis_commit_attempts: Count = Field(5, description="the number of attempts to commit facts, or to store a summary")
    batch_index_max_batches: Count = Field(
        500_000,
        description="the maximum number of batches that `GET /internal/v1/batches` finds in Redis, where there is no "
        "archive; those that changed first are left out",
    )
    outbox_max_messages: Count = Field(1_000_000, description="the maximum number of messages that wait for Kafka")
    outbox_streams: Annotated[int, Field(ge=1, le=256)] = Field(
        16,
        description="the number of streams that the outbox and the queues before the archive are spread over; "
        "it can be changed at any time",
    )
    announce_once_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        60.0,
        description="how long a repeated request with the same correlation id announces no phase again; 0 to announce "
        "with every request",
    )
    outbox_poll_interval_seconds: Seconds = Field(0.5, description="the time between polls of an idle outbox")
    outbox_unwritable_seconds: Seconds = Field(
        5.0, description="the wait before a topic that could not be written is retried"
    )
    outbox_takeover_seconds: Seconds = Field(
        60.0, description="how long another replica may hold unacked messages before they are taken over"
    )

    database_url: OptionalSecret = Field(
        None, description="`postgresql://…`: the archive behind Redis; if unset, there is no archive"
    )
    database_password: OptionalSecret = Field(None, description="the password, if it is not in `BCS_DATABASE_URL`")
    database_max_connections: Count = Field(8, description="the maximum number of concurrent statements to PostgreSQL")
    database_deadline_seconds: Seconds = Field(
        default_factory=_at_most(1.0, 0.5, "request_deadline_seconds"),
        description="how long a statement may take before PostgreSQL counts as unreachable; "
        "by default at most half of `BCS_REQUEST_DEADLINE_SECONDS`",
    )
    database_probe_interval_seconds: Seconds = Field(1.0, description="the time between probes of PostgreSQL")
    database_first_probe_seconds: Seconds = Field(
        2.0, description="how long a start waits for the first response of PostgreSQL"
    )
    archive_max_entries: Count = Field(
        1_000_000, description="the maximum number of entries that wait in Redis for PostgreSQL"
    )
    archive_facts_per_write: Count = Field(
        500, description="facts written to PostgreSQL at a time; 1,024 characters of text count as a fact"
    )
    archive_drain_deadline_seconds: Seconds = Field(
        20.0, description="how long PostgreSQL may take for entries that waited in Redis; then half as many are tried"
    )
    history_page_bytes: Count = Field(1024 * 1024, description="the maximum size of a page of a batch's history")
    archive_retention_days: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda known: max(400, known["redis_ttl_seconds"] // DAY_SECONDS + 3),
        description="how long the archive keeps a batch after its last event, and each entry of its history; "
        "by default more than `BCS_REDIS_TTL_SECONDS`",
    )

    message_max_deliveries: Count = Field(
        3, description="crashes of its actor after which a message becomes a dead letter"
    )
    restart_max: Count = Field(
        10, description="the maximum number of restarts within the period; with more, a supervisor stops and escalates"
    )
    restart_period_seconds: Seconds = Field(60.0, description="the period in which restarts are counted")
    batch_restart_max: Count = Field(300, description="the same for all actors of batches together")
    restart_backoff_initial_seconds: Seconds = Field(0.05, description="the wait before the first restart")
    restart_backoff_maximum_seconds: Seconds = Field(5.0, description="the longest wait before a restart")
    retry_maximum_seconds: Seconds = Field(
        2.0, description="the longest wait between retries while Redis or Kafka is unreachable"
    )
    hang_seconds: Seconds = Field(
        default_factory=lambda known: max(30.0, HANG_FACTOR * known["kafka_request_timeout_seconds"]),
        description="how long an actor may be without progress before it is restarted; "
        "by default at least 2.5 times `BCS_KAFKA_REQUEST_TIMEOUT_SECONDS`",
    )
    kill_grace_seconds: Seconds = Field(
        5.0,
        description="how long a cancelled actor may take, beside both stores' deadlines; then the process is unhealthy",
    )
    shutdown_seconds: Seconds = Field(25.0, description="how long a graceful stop may take")
    shutdown_drain_seconds: Annotated[float, BeforeValidator(_without_unit), Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="how long requests are still accepted after readiness ended"
    )
    metrics_interval_seconds: Seconds = Field(1.0, description="the time between samples of depths, lag and backlog")
    tracing: bool = Field(
        False, description="send spans to a collector, with the extra `tracing`; the `OTEL_…` variables say where"
    )
    tracing_flush_seconds: Seconds = Field(
        2.0, description="how long the end of the service waits for a collector that takes the last spans"
    )

    @property
    def instance(self) -> str:
        """This replica's name."""
        return self.instance_name or socket.gethostname()

    @property
    def kafka_security(self) -> KafkaSecurity:
        """How connections to Kafka are secured."""
        return KafkaSecurity(**{each.name: getattr(self, f"kafka_{each.name}") for each in fields(KafkaSecurity)})

    @property
    def redis(self) -> StoreUrl:
        """The URL of Redis, with the login."""
        return store_urls.redis_url(
            self.redis_url,
            username=self.redis_username,
            password=self.redis_password,
            sentinel_username=self.redis_sentinel_username,
            sentinel_password=self.redis_sentinel_password,
        )

    @property
    def database(self) -> StoreUrl | None:
        """The URL of PostgreSQL, with the login; None without an archive."""
        if self.database_url is None:
            return None
        return store_urls.database_url(self.database_url, password=self.database_password)

    @property
    def local_url(self) -> str | None:
        """The service's URL for local callers; None where the service listens on any free port."""
        return self._local_url("http" if self.http_tls_certfile is None else "https", self.http_port)

    @property
    def local_probe_url(self) -> str | None:
        """The URL of `/healthz` and the like for local callers; None where the port is any free one."""
        return self.local_url if self.http_probe_port is None else self._local_url("http", self.http_probe_port)

    @property
    def knows_callers(self) -> bool:
        """True if callers must have a token or a certificate."""
        return self.http_tokens_file is not None

    def _local_url(self, scheme: str, port: int) -> str | None:
        host = _LOOPBACK.get(self.http_host, self.http_host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" if port else None
