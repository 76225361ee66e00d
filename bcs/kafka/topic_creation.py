"""Lets no client of BCS create a topic. To import this module is enough.

A broker with `auto.create.topics.enable` creates a topic when a client asks for its metadata, unless the request says
that the client does not want that. aiokafka always lets the broker create topics, and has no option against that
(aiokafka 0.14, `MetadataRequest.build`). A topic that is created in this way has the broker's default number of
partitions and its default retention, and nobody is told that the topic was forgotten.
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
