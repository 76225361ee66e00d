"""The brokers of a cluster, with the addresses that they advertise to clients."""

from __future__ import annotations

from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient


@dataclass(frozen=True, slots=True, order=True)
class Broker:
    """One broker.

    :param host: the advertised host.
    :param port: the advertised port.
    """

    node_id: int
    host: str
    port: int


def advertised_brokers(admin: AIOKafkaAdminClient) -> list[Broker]:
    """The brokers in the metadata of a started client. The client's own connection may use another address."""
    brokers = admin._client.cluster.brokers()
    return sorted(Broker(broker.nodeId, broker.host, broker.port) for broker in brokers)
