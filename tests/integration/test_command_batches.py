"""`bcs batches show`, against a store that a real service has filled from events."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from bcs.devtools.servers.embedded import free_port
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.gateway import RedisGateway
from tests.support.commands import bcs, bcs_at_terminal, settings_of
from tests.support.events import phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ESSAYS = [f"0f9c2f6e-5a52-4b8f-9d33-{number:012}" for number in range(30)]
LATE = "essay-that-came-late"
FAILED_AT = "2026-01-01T12:00:00.654321Z"


@pytest.fixture
async def told(service: RunningService, platform: Platform, batch: str) -> str:
    """A batch of thirty: two spellchecked and one failed; nlp is done for all but one late essay."""
    await platform.send(
        registered(batch, ESSAYS),
        *(spellchecked(batch, essay) for essay in ESSAYS[:2]),
        spellchecked(batch, ESSAYS[2], "failed", FAILED_AT),
        phase_outcome(batch, "nlp", ESSAYS),
    )
    await wait_until(lambda: platform.caught_up(service.group))
    late = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await platform.send(spellchecked(batch, LATE, at=late))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


async def test_every_essay_that_holds_a_phase_back_is_in_the_document_with_why(
    service: RunningService, told: str
) -> None:
    ran = await bcs("batches", "show", told, "--json", **settings_of(service))
    assert (ran.exit_code, ran.error) == (0, "")
    document = ran.json
    assert (document["batch_id"], document["source"]) == (told, "redis")
    assert document["expected"]["count"] == 30
    assert {essay["essay_id"] for essay in document["known_essays"]} == {*ESSAYS, LATE}
    assert document["version"] >= 2
    phases = {phase["phase"]: phase for phase in document["phases"]}
    assert list(phases) == ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]

    spellcheck = phases["spellcheck"]
    assert spellcheck["complete"] is False
    assert [spellcheck[count] for count in ("completed", "failed", "outstanding", "missing")] == [3, 1, 27, 0]
    assert len(spellcheck["blocking_essays"]) == 28
    by_essay = {one["essay_id"]: one for one in spellcheck["blocking_essays"]}
    assert by_essay[ESSAYS[2]]["reason"] == "failed"
    assert by_essay[ESSAYS[2]]["mark"] == {"outcome": "failed", "at": FAILED_AT}
    assert {by_essay[essay]["reason"] for essay in ESSAYS[3:]} == {"no_mark"}
    assert spellcheck["report"] is None

    nlp = phases["nlp"]
    assert [(one["essay_id"], one["reason"]) for one in nlp["blocking_essays"]] == [(LATE, "no_mark")]
    assert nlp["outcome"] == {"status": "completed_successfully", "at": nlp["newest_mark_at"]}
    assert nlp["report"] is None
    assert nlp["blocking_essays"][0]["first_seen"] > nlp["newest_mark_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", nlp["newest_mark_at"])


async def test_what_is_shown_is_what_the_service_answers(
    service: RunningService, platform: Platform, batch: str, orchestrator: Orchestrator
) -> None:
    await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"))
    await wait_until(lambda: platform.caught_up(service.group))
    await orchestrator.complete(batch, "ai_feedback")
    ran = await bcs("batches", "show", batch, "--json", **settings_of(service))
    assert ran.json == (await orchestrator.get(f"/internal/v1/batches/{batch}")).json
    complete = {phase["phase"] for phase in ran.json["phases"] if phase["complete"]}
    assert complete == {"ai_feedback"}
    pipeline = (await orchestrator.define(batch, "comprehensive")).json
    assert set(pipeline["pruned_phases"]) == complete


async def test_twenty_are_listed_with_their_whole_ids_and_the_others_are_counted(
    service: RunningService, told: str
) -> None:
    ran = await bcs("batches", "show", told, COLUMNS=40, **settings_of(service))
    assert ran.exit_code == 0
    assert "\x1b" not in ran.output
    lines = ran.output.splitlines()
    assert lines[0].startswith(f"Batch {told}: 31 essays known, 30 expected, version ")
    assert f"  {ESSAYS[2]}  failed at {FAILED_AT}" in lines
    listed = [essay for essay in ESSAYS if any(line.startswith(f"  {essay}  ") for line in lines)]
    assert listed == ESSAYS[2:22]
    assert "  and 8 more, which --json lists" in lines
    [late] = [line for line in lines if line.startswith(f"  {LATE}")]
    assert "no mark" in late
    assert "No facts yet about: cj_assessment, ai_feedback" in lines


async def test_at_a_terminal_it_is_coloured_and_fits(service: RunningService, told: str) -> None:
    ran = await bcs_at_terminal(80, "batches", "show", told, **settings_of(service))
    assert ran.exit_code == 0
    assert "\x1b[" in ran.output
    assert max(map(len, ran.uncoloured.splitlines())) <= 80
    assert "…" not in ran.uncoloured
    assert all(essay in ran.uncoloured for essay in ESSAYS[2:22])


async def test_one_phase_alone_lists_its_essays_even_before_its_first_mark(service: RunningService, told: str) -> None:
    ran = await bcs("batches", "show", told, "--phase", "student_matching", **settings_of(service))
    assert "student_matching is blocked by 31 essays:" in ran.output
    assert "spellcheck" not in ran.output
    ran = await bcs("batches", "show", told, "--phase", "spelchek", **settings_of(service))
    assert (ran.exit_code, ran.output) == (2, "")
    assert "no such phase" in ran.error


async def test_expected_essays_that_nobody_named_are_told(
    service: RunningService, platform: Platform, batch: str
) -> None:
    await platform.send(registered(batch, ["a"], 3), spellchecked(batch, "a"))
    await wait_until(lambda: platform.caught_up(service.group))
    ran = await bcs("batches", "show", batch, **settings_of(service))
    assert "spellcheck lacks 2 expected essays that no event has named" in ran.output


async def test_an_unknown_batch_is_said_to_be_unknown(service: RunningService, batch: str) -> None:
    for options in ((), ("--json",)):
        ran = await bcs("batches", "show", batch, *options, **settings_of(service))
        assert (ran.exit_code, ran.output) == (1, "")
        [line] = ran.error.splitlines()
        assert batch in line


async def test_the_essays_of_a_batch_may_be_asked_for_in_pages(service: RunningService, told: str) -> None:
    everything = sorted([*ESSAYS, LATE])
    pages = [(await bcs("batches", "show", told, "--json", "--limit", "12", **settings_of(service))).json]
    while len(pages) < 4 and pages[-1]["next"] is not None:
        behind = ("--limit", "12", "--after", pages[-1]["next"])
        pages.append((await bcs("batches", "show", told, "--json", *behind, **settings_of(service))).json)
    assert [essay["essay_id"] for page in pages for essay in page["known_essays"]] == everything
    assert {page["essays_known"] for page in pages} == {31}


async def test_an_id_that_a_terminal_would_obey_is_spelled_out(
    service: RunningService, platform: Platform, batch: str
) -> None:
    essay = "\x1b]0;owned\x07[red]"
    await platform.send(spellchecked(batch, essay, "failed"))
    await wait_until(lambda: platform.caught_up(service.group))
    ran = await bcs_at_terminal(80, "batches", "show", batch, **settings_of(service))
    assert r"\x1b]0;owned\x07[red]" in ran.uncoloured
    assert "\x1b]" not in ran.output
    document = (await bcs("batches", "show", batch, "--json", **settings_of(service))).json
    assert [known["essay_id"] for known in document["known_essays"]] == [essay]


async def test_nothing_is_written_not_even_a_summary_that_is_missing(
    service: RunningService, told: str, gateway: RedisGateway
) -> None:
    keys = BatchKeys(service.service.settings.redis_key_prefix, told)
    before = await gateway.call(("HGETALL", keys.facts))
    ran = await bcs("batches", "show", told, "--json", **settings_of(service))
    assert len(ran.json["phases"]) == 4
    assert await gateway.call(("HGETALL", keys.facts)) == before
    assert await gateway.call(("KEYS", f"{keys.stem}*")) == [[keys.facts.encode()]]


async def test_without_redis_it_fails_with_one_line(batch: str) -> None:
    ran = await bcs("batches", "show", batch, BCS_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert (ran.exit_code, ran.output) == (1, "")
    [line] = ran.error.splitlines()
    assert "redis is out of reach" in line


@pytest.mark.parametrize("command", [("batches", "show", "b"), ("resolve", "b", "nlp", "--offline")])
async def test_state_in_the_memory_of_the_service_is_out_of_reach(command: tuple[str, ...]) -> None:
    ran = await bcs(*command, BCS_USE_MOCK_REPOSITORY="true")
    assert (ran.exit_code, ran.output) == (2, "")
    assert "BCS_USE_MOCK_REPOSITORY" in ran.error


@pytest.mark.parametrize("batch_id", ["", "x" * 256])
async def test_what_can_be_no_batch_is_refused(batch_id: str) -> None:
    ran = await bcs("batches", "show", batch_id)
    assert (ran.exit_code, ran.output) == (2, "")
    assert "1 to 255 characters" in ran.error
