"""Within the budgets nothing holds the event loop for more than a tenth of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from bcs.wire import topics
from tests.support.events import Event, cj_completed, envelope, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService
from tests.support.stalls import watched
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release, pytest.mark.serial]

LONGEST_SECONDS = 0.1
MOST = 20_000
PHASES = ("spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching")
ESSAYS = [f"essay-{number:08}-abcdefgh" for number in range(MOST)]


def invalid_ids(batch: str) -> Iterator[Event]:
    """Sixteen of 0.95 MB, each with 475,000 numbers for ids."""
    for number in range(16):
        data = {"entity_id": f"{batch}-{number}", "expected_essay_count": 2, "essay_ids": [0]}
        value = json.dumps(envelope(topics.ESSAYS_REGISTERED, data)).encode()
        yield Event(topics.ESSAYS_REGISTERED, batch.encode(), value.replace(b"[0]", b"[" + b"1," * 474_999 + b"1]"))


def too_many_essays(batch: str) -> Iterator[Event]:
    """Twenty-eight valid outcomes of 100,000 essays each."""
    essays = [f"{number:06}" for number in range(100_000)]
    for number in range(28):
        data = {
            "batch_id": f"{batch}-{number}",
            "phase_name": "nlp",
            "phase_status": "failed_critically",
            "failed_essay_ids": essays,
        }
        value = json.dumps(envelope(topics.PHASE_OUTCOME, data), separators=(",", ":")).encode()
        yield Event(topics.PHASE_OUTCOME, batch.encode(), value)


def a_batch_at_the_limit(batch: str) -> Iterator[Event]:
    """20,000 essays, five phases, and some of the events that write to them."""
    yield registered(batch, ESSAYS)
    for phase in PHASES:
        yield phase_outcome(batch, phase, [], ESSAYS)
    for number in range(12):
        yield spellchecked(batch, ESSAYS[number])
        yield cj_completed(batch, ESSAYS, [])
        yield phase_outcome(batch, PHASES[number % 5], ESSAYS[:9000], [])


@pytest.mark.parametrize("kind", [invalid_ids, too_many_essays, a_batch_at_the_limit])
async def test_no_kind_of_large_event_holds_up_the_loop(
    kind: Callable[[str], Iterator[Event]],
    service: RunningService,
    platform: Platform,
    orchestrator: Orchestrator,
    batch: str,
) -> None:
    await platform.send(spellchecked(batch, "essay"))
    await wait_until(lambda: platform.caught_up(service.group))
    events = list(kind(f"{batch}-large"))
    async with watched(service) as stalls:
        for event in events:
            await platform.send(event)

        async def done() -> bool:
            assert (await orchestrator.get("/healthz")).status == 200
            assert await orchestrator.to_run(batch, "spellcheck") == []
            return await platform.caught_up(service.group)

        await wait_until(done, 240)
    # Not the time that passed, which other processes have their share in.
    assert 0 < stalls.busy_seconds < LONGEST_SECONDS, stalls
    assert service.restarts()["intake"] == 0
