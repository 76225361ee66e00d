"""No client of BCS creates a topic by asking for it."""

from __future__ import annotations

from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v4, MetadataRequest_v5

import bcs.kafka.isolation  # noqa: F401 (as every consumer of BCS does)


def test_a_request_for_metadata_asks_the_broker_to_create_nothing() -> None:
    for version in (MetadataRequest_v4, MetadataRequest_v5):
        assert MetadataRequest(["a.topic"]).build(version).allow_auto_topic_creation is False
    assert (
        MetadataRequest(["a.topic"], allow_auto_topic_creation=True).build(MetadataRequest_v5).allow_auto_topic_creation
    )
