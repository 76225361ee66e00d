"""Gives each new connection of a Kafka client the secrets of its time, and closes it if the client is cancelled.

A client of aiokafka (0.14) keeps the password and the certificates that it was made with, and reports a failed
connection only to its log. So this module stands around `create_conn`, through which every connection is made: it
reads password, certificates and token for that connection, and notes why the connection failed. A client that BCS has
made (`bcs.kafka.clients`) carries a `ConnectionSource` in the place of its SSL context.

`AIOKafkaClient.bootstrap` closes its connection when a broker fails, but not when it is cancelled while it waits for
the metadata. No object refers to that connection afterwards, and it stays open as long as the process runs: a process
that stopped at such a time did not end by itself, but two seconds later by force. So this module closes it.

A connection that is closed is closed at once. Else TLS would wait for the farewell of the broker for up to 30 s, and
plain text until the broker has read all. `AIOKafkaClient.close` waits only for the connections that it uses at that
time, not for those that were idle, broken or only for the bootstrap. Their transports would outlive the client, and an
event loop of uvloop that is closed meanwhile may never end its `close`. No byte is missed: `close` fails the requests
without an answer.
Importing this module is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka.client
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError, SaslAuthenticationFailed

from bcs.config.kafka_security import KafkaSecurity

Address = tuple[str, int]

_WAITING_LOGIN_SECONDS = 0.1


class ConnectionSource(Protocol):
    """What a client needs to connect, now; and why its last connections failed.

    :param failures: host and port to the error of the last connection, where it failed.
    """

    failures: dict[Address, BaseException]
    security: KafkaSecurity

    def fresh(self) -> Mapping[str, Any]:
        """The options for a new connection, which replace those that the client was made with.

        :raises KafkaError: a file can't be used.
        """
        ...

    def ensure_login_due(self, address: Address, password: str | None) -> None:
        """Fail while the login at a broker has to wait, because the broker has refused it.

        :param password: None where the login is not by password.
        :raises SaslAuthenticationFailed: it has to wait.
        """
        ...

    def accepted(self, address: Address) -> None:
        """Called when a broker has accepted the connection."""
        ...

    def rejected(self, address: Address, password: str | None, error: SaslAuthenticationFailed) -> None:
        """Called when a broker did not accept the login."""
        ...


class CredentialsUnusable(KafkaError):  # type: ignore[misc] # aiokafka has no types
    """A certificate, a key or a token can't be had. The text names the setting, and repeats no secret."""


class NotConnected(NodeNotReadyError):  # type: ignore[misc] # aiokafka has no types
    """A client that knows the brokers can't connect to one of them.

    :param failures: host and port of each broker that can't be connected to, with the error.
    :param security: the settings of the client.
    """

    def __init__(self, failures: Mapping[Address, BaseException], security: KafkaSecurity) -> None:
        super().__init__("a broker can't be connected to")
        self.failures = failures
        self.security = security


@dataclass(slots=True)
class _Bootstrap:
    """One run of `bootstrap`, with the connections that it made."""

    connections: list[AIOKafkaConnection] = field(default_factory=list)
    is_over: bool = False


_current: ContextVar[_Bootstrap | None] = ContextVar("current", default=None)

_bootstrap_of_aiokafka = AIOKafkaClient.bootstrap
_create_conn_of_aiokafka = aiokafka.client.create_conn
_send_of_aiokafka = AIOKafkaClient.send
_fetch_all_metadata_of_aiokafka = AIOKafkaClient.fetch_all_metadata


def source_of(client: AIOKafkaClient) -> ConnectionSource | None:
    """The source that a client was made with; None for a client that BCS did not make."""
    return _as_source(client._ssl_context)


def _as_source(ssl_context: Any) -> ConnectionSource | None:
    return ssl_context if hasattr(ssl_context, "fresh") else None


async def _create_conn(host: str, port: int, **options: Any) -> AIOKafkaConnection:
    source = _as_source(options.get("ssl_context"))
    if source is None:
        connection = await _create_conn_of_aiokafka(host, port, **options)
    else:
        connection = await _connect(source, host, port, options)
    current = _current.get()
    # The task that refreshes the metadata starts within a bootstrap, so it keeps the context of this bootstrap.
    if current is not None and not current.is_over:
        current.connections.append(connection)
    return connection


async def _connect(source: ConnectionSource, host: str, port: int, options: Mapping[str, Any]) -> AIOKafkaConnection:
    address, password, asked = (host, port), None, False
    try:
        fresh = source.fresh()
        password = fresh.get("sasl_plain_password")
        try:
            source.ensure_login_due(address, password)
        except SaslAuthenticationFailed:
            # Some loops of aiokafka pause only where a connection takes time, and would hold up the event loop.
            await asyncio.sleep(_WAITING_LOGIN_SECONDS)
            raise
        asked = True
        connection = await _open(host, port, {**options, **fresh})
    except (OSError, KafkaError) as error:  # a TimeoutError is an OSError
        source.failures[address] = error
        if asked and isinstance(error, SaslAuthenticationFailed):
            source.rejected(address, password, error)
        raise
    except (ValueError, LookupError, AssertionError) as error:
        # aiokafka's parsers raise these for an unexpected answer. They would end aiokafka's own tasks for good.
        raised = KafkaConnectionError(f"unexpected answer: {type(error).__name__}")
        source.failures[address] = raised
        raise raised from error
    source.failures.pop(address, None)
    source.accepted(address)
    return connection


class _Connection(AIOKafkaConnection):  # type: ignore[misc] # aiokafka has no types
    """A connection whose socket is closed together with the connection."""

    def close(self, reason: Any = None, exc: BaseException | None = None) -> asyncio.Future[None] | None:
        """See `AIOKafkaConnection.close`."""
        closed: asyncio.Future[None] | None = super().close(reason, exc)
        transport = getattr(self._protocol, "_transport", None)
        if transport is not None:
            transport.abort()
        # A cancelled wait would else cancel the future of the connection, and with it every later close of the client.
        return None if closed is None else asyncio.shield(closed)


async def _open(host: str, port: int, options: Mapping[str, Any]) -> AIOKafkaConnection:
    connection = _Connection(host, port, **options)
    try:
        await connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


async def _bootstrap(client: AIOKafkaClient) -> None:
    current = _Bootstrap()
    before = _current.set(current)
    if source := source_of(client):
        source.failures.clear()
    try:
        await _bootstrap_of_aiokafka(client)
    finally:
        _current.reset(before)
        current.is_over = True
        for connection in current.connections:
            if connection not in client._conns.values():
                connection.close()


async def _send(client: AIOKafkaClient, *arguments: Any, **options: Any) -> Any:
    try:
        return await _send_of_aiokafka(client, *arguments, **options)
    except NodeNotReadyError as error:
        _raise_with_failures(client, error)
        raise


async def _fetch_all_metadata(client: AIOKafkaClient) -> Any:
    try:
        return await _fetch_all_metadata_of_aiokafka(client)
    except KafkaError as error:
        _raise_with_failures(client, error)
        raise


def _raise_with_failures(client: AIOKafkaClient, error: KafkaError) -> None:
    source = source_of(client)
    if source is None:
        return
    # A broker that has left the cluster is no cause any more.
    brokers = {(broker.host, broker.port) for broker in client.cluster.brokers()}
    if failures := {address: failure for address, failure in source.failures.items() if address in brokers}:
        raise NotConnected(failures, source.security) from error


aiokafka.client.create_conn = _create_conn
AIOKafkaClient.bootstrap = _bootstrap
AIOKafkaClient.send = _send
AIOKafkaClient.fetch_all_metadata = _fetch_all_metadata
