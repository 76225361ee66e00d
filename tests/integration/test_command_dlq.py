"""`bcs dlq` beside the embedded broker, with the variables that `bcs dev` prints."""

from __future__ import annotations

import json

import pytest

from bcs.config.loading import load_settings
from bcs.devtools.environment import variables_of
from bcs.devtools.servers.embedded import EmbeddedServer, create_topics
from bcs.wire import topics
from bcs.wire.published import SERVICE
from tests.support.commands import Ran, bcs
from tests.support.kafka import Platform

pytestmark = pytest.mark.anyio

SOURCE = topics.SPELLCHECK_COMPLETED
LETTERS = topics.dead_letter_topic(SOURCE)
OTHERS, PRODUCER = "another_service", "a_producer"


def letter(service: str) -> bytes:
    about = {"source_topic": SOURCE, "source_partition": 0, "source_offset": 0, "source_key_base64": "a2V5"}
    document = {
        "failed_event_envelope": {"written_by": service, "source_service": PRODUCER},
        "dlq_reason": "not_json",
        "timestamp": "2026-05-03T08:00:00Z",
        "service": service,
        "additional_metadata": about,
    }
    return json.dumps(document).encode()


@pytest.fixture
async def environment(private_kafka: EmbeddedServer) -> dict[str, str]:
    """The variables of `bcs dev`, with two dead letters of BCS and one of another service between them."""
    await create_topics(private_kafka.address, [*topics.CONSUMED, *topics.PUBLISHED], 1)
    async with Platform(private_kafka.address) as platform:
        for service in (SERVICE, OTHERS, SERVICE):
            await platform.send_raw((LETTERS, b"key", letter(service)))
    settings = load_settings(kafka_bootstrap_servers=private_kafka.address, kafka_enable_idempotence=False)
    return {name: value for name, value in variables_of(settings, 4002).items() if name != "BCS_DATABASE_URL"}


def said(ran: Ran) -> list[str]:
    assert ran.exit_code == 0, ran
    return [*ran.output.splitlines(), *ran.error.splitlines()]


async def test_letters_of_another_service_are_shown_and_left_alone(environment: dict[str, str]) -> None:
    groups = (await bcs("dlq", "list", "--json", **environment)).json["groups"]
    assert {(group["service"], group["producer"], group["waiting"]) for group in groups} == {
        (OTHERS, PRODUCER, 1),
        (SERVICE, PRODUCER, 2),
    }
    [line] = said(await bcs("dlq", "list", "--reason", "no_such_reason", **environment))
    assert line == "None of the 3 dead letters matches."

    output = said(await bcs("dlq", "replay", "--all", **environment))
    assert "2 of 2 dead letters replayed, 0 failed." in output
    assert f"1 dead letter of other services is left out ({OTHERS}); --service includes them." in output
    each = (await bcs("dlq", "list", "--each", "--json", **environment)).json["dead_letters"]
    assert [(one["service"], one["replayed"]) for one in each] == [(SERVICE, True), (OTHERS, False), (SERVICE, True)]


@pytest.mark.release
async def test_dead_letters_of_a_named_service_are_replayed(environment: dict[str, str]) -> None:
    listed = (await bcs("dlq", "list", "--json", **environment)).json["groups"]
    assert [(group["service"], group["waiting"]) for group in listed] == [(OTHERS, 1), (SERVICE, 2)]
    chosen = (await bcs("dlq", "replay", "--service", OTHERS, "--json", **environment)).json
    assert (chosen["selected"], chosen["replayed"], chosen["failed"]) == (1, 1, {})


@pytest.mark.release
async def test_letters_are_purged_beside_the_embedded_broker(environment: dict[str, str]) -> None:
    purged = await bcs("dlq", "purge", "--yes", **environment)
    assert said(purged)[0] == "1 dead letter deleted."
    purged = await bcs("dlq", "purge", "--yes", "--service", OTHERS, "--service", SERVICE, **environment)
    assert said(purged)[0] == "2 dead letters deleted."
    assert said(await bcs("dlq", "list", **environment)) == ["There are no dead letters."]
    shown = await bcs("dlq", "show", f"{LETTERS}/0/3", **environment)
    assert (shown.exit_code, "marks all dead letters up to offset 0 as purged" in shown.error) == (1, True)
