"""`bcs events`: an operator registers a batch, sends an invalid event, and watches the results."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.wire import topics
from tests.support.asyncapi_file import FILE as ASYNCAPI
from tests.support.commands import bcs, settings_of
from tests.support.kafka import Platform, create_platform_topics, values
from tests.support.service import BcsProcess, Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

REGISTERED = "BatchEssaysRegistered"
SPELLCHECKED = "SpellcheckPhaseCompletedV1"


async def test_a_sample_that_is_sent_arrives_and_what_comes_of_it_is_shown(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    settings = settings_of(service)
    sampled = [
        await bcs("events", "sample", event_type, "--batch", batch, "--essay", "a", "--essay", "b")
        for event_type in (REGISTERED, SPELLCHECKED)
    ]
    sent = await bcs("events", "send", "-", given="".join(ran.output for ran in sampled), **settings)
    assert (sent.exit_code, sent.error) == (0, "")
    assert [line.split(" sent to ")[0] for line in sent.output.splitlines()] == [REGISTERED, SPELLCHECKED, SPELLCHECKED]

    async def pruned() -> bool:
        answer = await orchestrator.define(batch, "ai_feedback", correlation_id="tail")
        return answer.status == 200 and answer.json["pruned_phases"] == ["spellcheck"]

    await wait_until(pruned)

    async def shown() -> bool:
        tail = await bcs("events", "tail", "--skipped", "--no-follow", "--last", "1000", "--json", **settings)
        events = [json.loads(line) for line in tail.output.splitlines()]
        assert {event["topic"] for event in events} <= {topics.PHASE_SKIPPED}
        return batch in {event["event"]["data"]["batch_id"] for event in events}

    await wait_until(shown)


async def test_an_event_that_is_not_valid_is_sent_only_unchecked(
    service: RunningService, batch: str, platform: Platform, tmp_path: Path
) -> None:
    settings = settings_of(service)
    sample = (await bcs("events", "sample", SPELLCHECKED, "--batch", batch, "--essay", f"{batch}-e")).json
    sample["data"]["status"] = "done"
    file = tmp_path / "event.json"
    file.write_text(json.dumps(sample))
    refused = await bcs("events", "send", str(file), **settings)
    assert (refused.exit_code, refused.output) == (1, "")
    [line] = refused.error.splitlines()
    assert line.startswith("bcs: event 1: invalid_event: data.status: ")
    sent = await bcs("events", "send", str(file), "--unchecked", "--json", **settings)
    assert sent.json["sent"][0]["key"] == f"{batch}-e"
    dead_letters = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
    await wait_until(lambda: platform.messages(dead_letters, batch))
    [letter] = await platform.messages(dead_letters, batch)
    assert values([letter])[0]["failed_event_envelope"] == sample
    [original] = await platform.messages(topics.SPELLCHECK_COMPLETED, f"{batch}-e")
    assert (original.value, original.headers) == (file.read_bytes(), ())
    tail = await bcs("events", "tail", "--dlq", "--no-follow", "--last", "1000", **settings)
    [line] = [line for line in tail.output.splitlines() if batch in line]
    assert "dead letter: invalid_event" in line
    assert f"bcs dlq show {letter.topic}/{letter.partition}/{letter.offset}" in line


@pytest.mark.release
async def test_tail_follows_until_it_is_interrupted(service: RunningService, batch: str, tmp_path: Path) -> None:
    settings = settings_of(service)
    arguments = ("events", "tail", "--last", "0", "--json")
    with BcsProcess(tmp_path, *arguments, forked=True, **settings) as following:
        sends = 0

        async def heard() -> bool:
            # Where it starts to follow, nobody outside can see.
            nonlocal sends
            sends += 1
            essay = f"{batch}-{sends}"
            await bcs("events", "send", "-", "--unchecked", "--topic", REGISTERED, given=f'"{essay}"', **settings)
            return "not_an_object" in following.output.read_text()

        await wait_until(heard)
        following.signal(signal.SIGINT)
        assert await following.ended() == 0
    assert following.log.read_text() == ""


@pytest.mark.release
async def test_tail_says_in_one_line_that_the_broker_went_away(private_kafka: EmbeddedServer, tmp_path: Path) -> None:
    await create_platform_topics(private_kafka.address)
    settings = {
        "BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address,
        "BCS_KAFKA_REQUEST_TIMEOUT_SECONDS": 1,
        "BCS_HANG_SECONDS": 10,
    }
    async with Platform(private_kafka.address) as platform:
        await platform.send_raw((topics.PHASE_SKIPPED, b"b", b"{}"))
    with BcsProcess(tmp_path, "events", "tail", forked=True, **settings) as following:
        await wait_until(lambda: "not a PhaseSkippedV1" in following.output.read_text())
        private_kafka.kill()
        assert await following.ended() == 1
    [line] = following.log.read_text().splitlines()
    assert line.startswith("bcs: kafka is out of reach")


async def test_a_topic_that_is_missing_is_named_and_not_made(private_kafka: EmbeddedServer) -> None:
    settings = {"BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address}
    for arguments in (("send", "-", "--unchecked", "--topic", REGISTERED), ("tail", "--skipped")):
        ran = await bcs("events", *arguments, given="{}", **settings)
        assert (ran.exit_code, ran.output) == (1, "")
        [line] = ran.error.splitlines()
        assert line.startswith("bcs: there is no topic huleedu.")


@pytest.mark.parametrize("arguments", [("sample", "PhaseSkippedV1"), ("send", "-", "--topic", topics.PHASE_SKIPPED)])
async def test_what_bcs_does_not_read_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    ran = await bcs("events", *arguments)
    assert (ran.exit_code, ran.output) == (2, "")
    assert "BatchEssaysRegistered" in ran.error


@pytest.mark.release
async def test_the_schemas_are_printed_for_all_topics_for_one_and_as_a_document() -> None:
    everything, one, document = [
        (await bcs("events", "schema", *arguments)).json for arguments in ((), (SPELLCHECKED,), ("--asyncapi",))
    ]
    assert everything.keys() == {*topics.CONSUMED, *topics.PUBLISHED}
    assert one == everything[topics.SPELLCHECK_COMPLETED]
    assert document == json.loads(ASYNCAPI.read_text())
    for arguments, problem in (
        (("nothing",), "it is not one of huleedu"),
        ((SPELLCHECKED, "--asyncapi"), "it describes all topics"),
    ):
        refused = await bcs("events", "schema", *arguments)
        assert (refused.exit_code, problem in " ".join(refused.error.replace("│", "").split())) == (2, True)
