"""The brokers of a cluster, at the addresses that they tell their clients."""

from __future__ import annotations

from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient


@dataclass(frozen=True, slots=True, order=True)
class Broker:
    """One broker.

    :param host: of the listener that the broker advertises.
    :param port: of the same.
    """

    node_id: int
    host: str
    port: int


def advertised_brokers(admin: AIOKafkaAdminClient) -> list[Broker]:
    """The brokers that a client which has started was told of. Its own connection may lead to another address."""
    brokers = admin._client.cluster.brokers()
    return sorted(Broker(broker.nodeId, broker.host, broker.port) for broker in brokers)
