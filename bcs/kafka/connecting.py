"""Closes the connection of a Kafka client that is cancelled while it connects. Importing this module is enough.

`AIOKafkaClient.bootstrap` closes its connection when a broker fails, but not when it is cancelled while it waits for
the metadata (aiokafka 0.14). No object refers to that connection afterwards, and it stays open as long as the process
runs: a process that stopped at such a time did not end by itself, but two seconds later by force.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiokafka.client
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection


@dataclass(slots=True)
class _Bootstrap:
    """One run of `bootstrap`, with the connections that it made."""

    connections: list[AIOKafkaConnection] = field(default_factory=list)
    is_over: bool = False


_current: ContextVar[_Bootstrap | None] = ContextVar("current", default=None)

_bootstrap_of_aiokafka = AIOKafkaClient.bootstrap
_create_conn_of_aiokafka = aiokafka.client.create_conn


async def _create_conn(*arguments: Any, **options: Any) -> AIOKafkaConnection:
    connection = await _create_conn_of_aiokafka(*arguments, **options)
    current = _current.get()
    # The task that refreshes the metadata starts within a bootstrap, so it keeps the context of this bootstrap.
    if current is not None and not current.is_over:
        current.connections.append(connection)
    return connection


async def _bootstrap(client: AIOKafkaClient) -> None:
    current = _Bootstrap()
    before = _current.set(current)
    try:
        await _bootstrap_of_aiokafka(client)
    finally:
        _current.reset(before)
        current.is_over = True
        for connection in current.connections:
            if connection not in client._conns.values():
                connection.close()


aiokafka.client.create_conn = _create_conn
AIOKafkaClient.bootstrap = _bootstrap
