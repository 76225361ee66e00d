"""The metrics of a new process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import get_args

import pytest

from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines
from bcs.errors import DeadLetterReason
from bcs.runtime.tree import Service
from bcs.wire import topics

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A service that is not started, with a permanent record."""
    settings = load_settings(http_host="127.0.0.1", http_port=0, database_url="postgresql://127.0.0.1:1/none")
    service = Service(settings, load_pipelines(None))
    with closing(service.listener):
        yield service


def zeros(service: Service, name: str) -> list[dict[str, str]]:
    """The labels of a counter's series; all of them count from zero."""
    samples = [
        sample for family in service.telemetry.registry.collect() for sample in family.samples if sample.name == name
    ]
    assert {sample.value for sample in samples} <= {0}
    return [sample.labels for sample in samples]


async def test_the_restarts_of_every_actor_are_counted_from_zero(service: Service) -> None:
    actors = {labels["actor"] for labels in zeros(service, "bcs_actor_restarts_total")}
    assert actors == {"metrics", "publisher", "archive", "batches", "batches/*", "intake", "http"}
    assert actors >= {child.name for child in service.root.snapshot().children}


async def test_the_dead_letters_of_every_topic_and_reason_are_counted_from_zero(service: Service) -> None:
    counted = [(labels["topic"], labels["reason"]) for labels in zeros(service, "bcs_dead_letters_total")]
    consumed = [(topic, reason) for topic in topics.CONSUMED for reason in get_args(DeadLetterReason)]
    assert sorted(counted) == sorted([*consumed, (topics.RESOLUTION, "pipeline_resolution_failed")])
    assert {"not_json", "time_in_the_future", "skipped_by_operator"} <= {reason for _, reason in counted}
