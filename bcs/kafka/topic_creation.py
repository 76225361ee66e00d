"""Keeps the Kafka clients of BCS from creating topics. Importing this module is enough.

A broker with `auto.create.topics.enable` creates a topic when a client requests its metadata, unless the request
forbids that. aiokafka always allows it, and has no option for this (aiokafka 0.14, `MetadataRequest.build`). A topic
that is created in this way has the broker's default number of partitions and default retention, and no operator
notices that the topic was missing.
"""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.metadata import MetadataRequest

_build_of_aiokafka = MetadataRequest.build


def _build(request: MetadataRequest, request_struct_class: Any) -> Any:
    if request._allow_auto_topic_creation is None:
        request._allow_auto_topic_creation = False
    return _build_of_aiokafka(request, request_struct_class)


MetadataRequest.build = _build
