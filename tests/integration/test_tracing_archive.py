"""Spans of a service with an archive; the queue before PostgreSQL carries contexts to the next process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bcs.wire import topics
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform
from tests.support.service import COMPLETE, DEFINE, Orchestrator, running_service, utc_now
from tests.support.span_tree import drawn
from tests.support.spans import PARENT, SPAN_ID, TRACE_ID, Spans, context_of, links_of, parent_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

PAGE = Path(__file__).parents[2] / "docs" / "tracing.md"


@pytest.fixture
async def database(module_database_url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy before PostgreSQL, and the URL through it."""
    url = urlsplit(module_database_url)
    async with FaultProxy(url.hostname or "", url.port or 0) as proxy:
        login = url.netloc.rpartition("@")[0]
        yield proxy, url._replace(netloc=f"{login}@{proxy.address}" if login else proxy.address).geturl()


async def report(orchestrator: Orchestrator, batch: str) -> None:
    """Report a phase, in the caller's trace."""
    body = {"batch_id": batch, "phase_name": "spellcheck", "success": True}

    async def stored() -> bool:
        answer = await orchestrator.request("POST", COMPLETE, json=body, headers={"traceparent": PARENT})
        return answer.status == 200

    await wait_until(stored)


async def test_one_trace_is_as_the_documentation_shows_it(
    redis_url: str, kafka_bootstrap_servers: str, database: tuple[FaultProxy, str], platform: Platform, batch: str
) -> None:
    spans = Spans()
    _, database_url = database
    async with (
        running_service(
            None,
            utc_now,
            spans.tracer_of,
            redis_url=redis_url,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            database_url=database_url,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await report(orchestrator, batch)
        body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": batch}
        answer = await orchestrator.request("POST", DEFINE, json=body, headers={"traceparent": PARENT})
        assert answer.status == 200, answer.body
        await spans.wait_for(f"publish {topics.PHASE_SKIPPED}")
        await wait_until(lambda: len(spans.named("archive")) == 2)
    assert all(span.context and f"{span.context.trace_id:032x}" == TRACE_ID for span in spans.all)
    # What is published and what is archived happen at the same time.
    either = drawn(spans.all, int(SPAN_ID, 16))
    text = PAGE.read_text()
    shown = text.partition("```text\n")[2].partition("\n```")[0]
    assert sorted(either.replace("├", "└").splitlines()) == sorted(shown.replace("├", "└").splitlines()), either


async def test_what_waited_for_postgresql_is_archived_in_its_trace_by_the_next_process(
    redis_url: str, database: tuple[FaultProxy, str], batch: str
) -> None:
    proxy, database_url = database
    settings = {
        "redis_url": redis_url,
        "redis_key_prefix": f"{batch}:",
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "database_url": database_url,
    }
    before, after = Spans(), Spans()
    async with (
        running_service(None, utc_now, before.tracer_of, **settings) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await report(orchestrator, f"{batch}-first")
        proxy.refuse()
        await proxy.cut()
        for name in ("one", "two"):
            await report(orchestrator, f"{batch}-{name}")
    commits = [context_of(await before.wait_for("commit", bcs__batch__id=f"{batch}-{name}")) for name in ("one", "two")]
    queued = before.named("archive", bcs__archive__queued=True)
    assert {parent_of(span) for span in queued} == set(commits)
    proxy.accept()
    async with running_service(None, utc_now, after.tracer_of, **settings):
        await wait_until(lambda: after.named("archive"))
    archived = after.named("archive")
    caused = {context for span in archived for context in (links_of(span) or [parent_of(span) or ""])}
    assert caused == set(commits)
