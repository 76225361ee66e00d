"""`bcs batches erase`, against a running service and the embedded broker, which can't delete records."""

from __future__ import annotations

import pytest

from bcs.wire import topics
from tests.support.commands import bcs, settings_of
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LETTERS = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)


@pytest.fixture
async def told(service: RunningService, platform: Platform, batch: str) -> str:
    """A batch with an essay, and with a dead letter."""
    invalid = spellchecked(batch, "Elsas-essay", status="no such status")
    await platform.send(registered(batch, ["Elsas-essay"]), invalid)
    await wait_until(lambda: platform.messages(LETTERS, batch))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


@pytest.mark.release
async def test_an_operator_looks_and_declines(service: RunningService, told: str) -> None:
    arguments = ("batches", "erase", told, "--reason", "asked for", "--url", service.base)
    ran = await bcs(*arguments, given="n\n", **settings_of(service))
    assert ran.exit_code == 1
    assert [line.split() for line in ran.uncoloured.splitlines() if line.startswith(("redis", "kafka"))] == [
        ["redis", "batch", "1"],
        ["redis", "essays", "1"],
        ["kafka", "dead", "letters", "1"],
    ]
    looked = (await bcs(*arguments, "--dry-run", "--json", **settings_of(service))).json
    assert (looked["dry_run"], looked["dead_letters"]) == (True, 1)
    assert (await bcs("batches", "show", told, **settings_of(service))).exit_code == 0


@pytest.mark.release
async def test_the_batch_is_erased_and_what_kafka_keeps_is_listed(service: RunningService, told: str) -> None:
    arguments = ("batches", "erase", told, "--reason", "asked for", "--url", service.base)
    ran = await bcs(*arguments, "--yes", "--json", **settings_of(service))
    answer = ran.json
    assert ran.exit_code == 1, "a dead letter is left"
    assert {"place": "redis", "what": "essays", "count": 1} in answer["removed"]
    [left] = answer["dead_letters"]["left"]
    assert left["position"].startswith(LETTERS)
    assert "goes when Kafka's retention removes it" in left["why"] or "which is not of this batch" in left["why"]
    assert {each["what"] for each in answer["left"]} == {"events", "announcements"}
    shown = await bcs("batches", "show", told, **settings_of(service))
    assert shown.exit_code == 1
    assert "the batch was erased" in shown.error
    again = await bcs(*arguments, "--yes", **settings_of(service))
    assert "nothing was there any more" in again.uncoloured
    assert left["position"] in again.uncoloured.replace("\n", "")


@pytest.mark.release
async def test_without_kafka_the_stores_are_erased_and_the_command_says_what_is_not(
    service: RunningService, told: str, free_port: int
) -> None:
    settings = {**settings_of(service), "BCS_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port}"}
    settings["BCS_KAFKA_REQUEST_TIMEOUT_SECONDS"] = "1"
    arguments = ("batches", "erase", told, "--reason", "asked for", "--url", service.base, "--yes", "--json")
    ran = await bcs(*arguments, **settings)
    assert ran.exit_code == 1
    assert "kafka is out of reach" in ran.json["dead_letters"]["problem"]
    assert {"place": "redis", "what": "essays", "count": 1} in ran.json["removed"]


async def test_a_reason_is_required(service: RunningService, batch: str) -> None:
    ran = await bcs("batches", "erase", batch, "--reason", " ", "--url", service.base, **settings_of(service))
    assert ran.exit_code == 2
