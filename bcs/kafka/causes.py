"""Turns an error of aiokafka into one line with the cause, the address, and the setting or the right that helps.

aiokafka's errors name a class, not what an operator has to do; the reason of a failed connection is only in its log.
The texts of this module are in the log, in `/healthz` and in the errors of commands.
"""

from __future__ import annotations

from typing import Any, Protocol

import anyio
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    BrokerResponseError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    UnsupportedCodecError,
    for_code,
)

from bcs.kafka.connecting import CredentialsUnusable, NotConnected, source_of
from bcs.kafka.connection_problems import addresses_of, known_problem, listener_problem

_MOST_CHARACTERS = 400
_TOO_LARGE = "raise max.message.bytes of the topic, or lower BCS_KAFKA_MAX_MESSAGE_BYTES"
_REPLICAS = "bring back the topic's replicas, or lower its min.insync.replicas"
_REMEDIES = {
    "TOPIC_AUTHORIZATION_FAILED": "grant DESCRIBE on the topic, and READ (consumed) or WRITE (published)",
    "GROUP_AUTHORIZATION_FAILED": "grant READ on the group that BCS_KAFKA_CONSUMER_GROUP_ID names",
    "CLUSTER_AUTHORIZATION_FAILED": "grant IDEMPOTENT_WRITE on the cluster, or set BCS_KAFKA_ENABLE_IDEMPOTENCE=false",
    "UNKNOWN_TOPIC_OR_PARTITION": "create the topic, or grant DESCRIBE on it",
    "MESSAGE_SIZE_TOO_LARGE": _TOO_LARGE,
    "RECORD_LIST_TOO_LARGE": _TOO_LARGE,
    "NOT_ENOUGH_REPLICAS": _REPLICAS,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": _REPLICAS,
    "INVALID_RECORD": "a compacted topic accepts no message without a key",
    "INVALID_TIMESTAMP": "see message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic",
    "POLICY_VIOLATION": "the log of the broker names the policy",
    "UNSUPPORTED_SASL_MECHANISM": "set BCS_KAFKA_SASL_MECHANISM to one that the broker offers",
    "UNKNOWN": "the log of the broker has the reason",
    "UNSUPPORTED_VERSION": "the broker is too old, or lacks a part of Kafka's protocol",
}
"""The broker's name of an error to what an operator can do."""

_NOT_IDEMPOTENT = "where the broker does not support idempotent producers, set BCS_KAFKA_ENABLE_IDEMPOTENCE=false"
_REFUSALS = (
    BrokerResponseError,
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IncompatibleBrokerVersion,
    UnsupportedCodecError,
    NotImplementedError,  # aiokafka raises this for a broker that supports none of its versions of a request
)


class ProducerRefused(KafkaError):  # type: ignore[misc] # aiokafka has no types
    """A broker answered, and refused an idempotent producer."""


class LoginRefused(KafkaConnectionError):  # type: ignore[misc] # aiokafka has no types
    """A broker answered, and refused the login."""


class _Client(Protocol):
    async def start(self) -> None: ...


async def start(client: _Client, servers: str, timeout_seconds: float, *, idempotent: bool = False) -> None:
    """Start a client of aiokafka.

    :param servers: the client's bootstrap servers, for the error's text.
    :param idempotent: whether the client is an idempotent producer.
    :raises KafkaConnectionError: no broker can be used; the text has the address and the reason.
    :raises LoginRefused: a broker answered, and refused the login.
    :raises ProducerRefused: a broker refused the idempotent producer.
    :raises KafkaError: a broker refused something else.
    """
    try:
        with anyio.fail_after(timeout_seconds):
            await client.start()
    except (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, OSError) as error:
        inner: Any = getattr(client, "_client", None) or getattr(client, "client", None)
        raise await _failure(inner, servers) from error
    except _REFUSALS as error:
        if not idempotent:
            raise
        text = cause_of(error)
        if "BCS_KAFKA_ENABLE_IDEMPOTENCE" not in text:
            text = f"{text}; {_NOT_IDEMPOTENT}"
        raise ProducerRefused(f"can't start an idempotent producer at {_at(servers)}: {text}") from error


async def bootstrap(client: AIOKafkaClient, servers: str) -> None:
    """Connect a bare client to one of its bootstrap servers. The errors are those of `start`."""
    try:
        await client.bootstrap()
    except (KafkaConnectionError, OSError) as error:
        raise await _failure(client, servers) from error


def cause_of(error: BaseException) -> str:
    """The cause of an error in one line of limited length; of an exception group the first error counts."""
    error = _first(error)
    if isinstance(error, RequestTimedOutError | KafkaTimeoutError | TimeoutError):
        return _plain(error) if _plain(error) and isinstance(error, TimeoutError) else "no answer in time"
    if isinstance(error, NotConnected):
        problems = (
            f"can't connect to the broker {host}:{port}: "
            + (known_problem(failure, host, error.security) or cause_of(failure))
            for (host, port), failure in error.failures.items()
        )
        return "; ".join(problems)[:_MOST_CHARACTERS]
    if isinstance(error, CredentialsUnusable):
        return _plain(error)[:_MOST_CHARACTERS]
    if isinstance(error, SaslAuthenticationFailed | AuthenticationFailedError):
        return f"the broker does not accept the login: {_plain(error)}"[:_MOST_CHARACTERS]
    if isinstance(error, BrokerResponseError):
        return refusal_of(error.errno, detail=_plain(error))
    name, text = type(error).__name__, _plain(error)
    if isinstance(error, KafkaConnectionError | ProducerRefused):
        return (text or "the connection was lost")[:_MOST_CHARACTERS]
    return (f"{name}: {text}" if text else name)[:_MOST_CHARACTERS]


def refusal_of(code: int, *, detail: str = "") -> str:
    """A broker's error code in one line, with its name and what an operator can do.

    :param detail: the topic, group or other thing that the broker refused; empty where it is not known.
    """
    error: Any = for_code(code)
    name = error.message if error.errno == code else "error"
    about = f" for {detail}" if detail else ""
    remedy = _REMEDIES.get(name, "")
    return f"the broker refuses{about[: _MOST_CHARACTERS // 2]}: {name} ({code})" + (f"; {remedy}" if remedy else "")


def problem_of(client: AIOKafkaClient, host: str, port: int) -> str:
    """Why the last connection of a client to a broker failed."""
    source = source_of(client)
    failure = source.failures.get((host, port)) if source else None
    if source is None or failure is None:
        return "the connection was lost"
    return known_problem(failure, host, source.security) or cause_of(failure)


def is_refusal(error: BaseException) -> bool:
    """True if a broker answered with a refusal, so Kafka is not out of reach."""
    error = _first(error)
    if isinstance(error, NotConnected):
        return all(is_refusal(failure) for failure in error.failures.values())
    return isinstance(error, (*_REFUSALS, ProducerRefused, LoginRefused))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _plain(error: BaseException) -> str:
    # str() of an aiokafka error begins with the class and the code.
    text = " ".join(str(argument) for argument in error.args)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return " ".join(text.split())


def _at(servers: str) -> str:
    return f"{servers} (BCS_KAFKA_BOOTSTRAP_SERVERS)"


async def _failure(client: AIOKafkaClient | None, servers: str) -> KafkaConnectionError:
    """The error for a client that could not connect, with the reason.

    :param client: None where it is not known.
    """
    source = source_of(client) if client else None
    failures = source.failures if source else {}
    bootstrap_servers = [(host, port) for host, port, _family in collect_hosts(servers)]
    found: dict[str, None] = {}
    for host, port in addresses_of(bootstrap_servers, source):
        failure = failures.get((host, port))
        problem = known_problem(failure, host, source.security) if source and failure else None
        at = "" if (host, port) in bootstrap_servers else f"the broker {host}:{port} behind it: "
        found.setdefault(at + (problem or await listener_problem(host, port, source)))
    text = f"can't connect to {_at(servers)}: {', or '.join(found)}"
    if failures and all(is_refusal(failure) for failure in failures.values()):
        return LoginRefused(text)
    return KafkaConnectionError(text)
