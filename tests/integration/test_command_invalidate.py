"""`bcs batches invalidate`, against a running service."""

from __future__ import annotations

import getpass
import uuid

import pytest

from bcs.ops.operators import user_agent
from tests.support.commands import Ran, bcs
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

REASON = ("--reason", "a wrong dictionary")
SPELLCHECK = ("--phase", "spellcheck")
TO_RUN = ["spellcheck", "ai_feedback"]


@pytest.fixture
async def complete(service: RunningService, platform: Platform, batch: str) -> str:
    """A batch of two spellchecked essays."""
    await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"), spellchecked(batch, "b"))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


async def invalidate(service: RunningService, batch: str, *options: str, given: str = "") -> Ran:
    return await bcs("batches", "invalidate", batch, *options, "--url", service.base, given=given)


async def test_it_shows_what_it_would_take_back_and_asks(
    service: RunningService, orchestrator: Orchestrator, complete: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = await invalidate(service, complete, *SPELLCHECK, *REASON, given="n\n")
    assert refused.exit_code == 1
    assert "spellcheck  no longer complete            2         0" in refused.output
    assert "  b: completed at " in refused.output
    assert "No longer complete: spellcheck." in refused.output
    assert "Aborted" in refused.error
    assert await orchestrator.to_run(complete) == ["ai_feedback"]
    confirmed = await invalidate(service, complete, *SPELLCHECK, *REASON, given="y\n")
    assert (confirmed.exit_code, confirmed.error) == (0, "")
    last = confirmed.output.splitlines()[-1]
    assert "Taken back: spellcheck: 2 completions. Correlation id " in last
    assert uuid.UUID(last.split("Correlation id ")[1].rstrip("."))
    assert await orchestrator.to_run(complete) == TO_RUN
    [line] = [record for record in caplog.records if record.message == "phases_invalidated"]
    assert vars(line)["requested_by"] == f"{user_agent()} at 127.0.0.1"
    assert f"({getpass.getuser()}@" in user_agent()


async def test_one_essay_is_taken_back_without_a_question(
    service: RunningService, orchestrator: Orchestrator, complete: str
) -> None:
    shown = await invalidate(service, complete, *SPELLCHECK, "--essay", "b", *REASON, "--dry-run")
    assert shown.exit_code == 0
    assert shown.output.splitlines()[-1] == "Nothing was changed."
    assert await orchestrator.to_run(complete) == ["ai_feedback"]
    ran = await invalidate(service, complete, *SPELLCHECK, "--essay", "b", *REASON, "--yes", "--json")
    assert ran.json["dry_run"] is False
    assert [essay["essay_id"] for essay in ran.json["phases"][0]["essays"]] == ["b"]
    assert await orchestrator.to_run(complete) == TO_RUN


async def test_with_json_the_question_is_not_on_standard_output(service: RunningService, complete: str) -> None:
    ran = await invalidate(service, complete, *SPELLCHECK, *REASON, "--json", given="y\n")
    assert ran.json["no_longer_complete"] == ["spellcheck"]
    assert "Would be taken back: spellcheck: 2 completions." in ran.error


async def test_refusals_are_one_line(service: RunningService, complete: str, batch: str) -> None:
    for options, part in (
        (("--phase", "spelchek"), "400 Bad Request: invalid: phases.0; phases.0: must be one of ai_feedback, "),
        ((*SPELLCHECK, "--essay", "c"), "essays.0: the batch has no essay with this id"),
    ):
        ran = await invalidate(service, complete, *options, *REASON, "--yes")
        assert (ran.exit_code, ran.output) == (1, "")
        [line] = ran.error.splitlines()
        assert part in line
    unknown = await invalidate(service, f"{batch}-unknown", *SPELLCHECK, *REASON)
    assert (unknown.exit_code, unknown.output) == (1, "")
    assert "404 Not Found: the batch is unknown" in unknown.error
    blank = await invalidate(service, complete, *SPELLCHECK, "--reason", " ")
    assert (blank.exit_code, blank.output) == (2, "")
    assert "a reason is required" in blank.error
