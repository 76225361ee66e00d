"""The page `/docs` in a browser: it shows every call, asks no other host, and needs a token where the service does."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

from bcs.http import page_files
from bcs.http.described import all_routes
from bcs.http.identity import Scope
from tests.support.service import Orchestrator, RunningService, running_service

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [pytest.mark.anyio, pytest.mark.release]
in_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
TOKEN = "a-token-with-all-scopes"  # noqa: S105 (of the test)


@asynccontextmanager
async def service_with(redis_url: str, kafka: str, **settings: object) -> AsyncIterator[RunningService]:
    """A service."""
    async with running_service(redis_url=redis_url, kafka_bootstrap_servers=kafka, **settings) as service:
        yield service


@dataclass
class Seen:
    """What a page asked for and complained about."""

    addresses: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@asynccontextmanager
async def browser_page(seen: Seen) -> AsyncIterator[Page]:
    """A page of the machine's Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        page.on("request", lambda request: seen.addresses.append(request.url))
        page.on("console", lambda message: seen.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        yield page
        await browser.close()


async def calls_shown(page: Page) -> set[str]:
    """The names of the calls on the page."""
    await page.wait_for_selector(".opblock")
    ids: list[str] = await page.eval_on_selector_all(".opblock", "blocks => blocks.map(block => block.id)")
    return {identifier.rpartition("-")[2] for identifier in ids}


@in_chromium
async def test_the_page_shows_every_call_and_asks_no_other_host(redis_url: str, module_kafka: str) -> None:
    seen = Seen()
    async with service_with(redis_url, module_kafka) as service, browser_page(seen) as page:
        await page.goto(f"{service.base}/docs")
        assert await calls_shown(page) == {route.name for route in all_routes()}
        # The examples and the schemas of a call, and a call that is tried.
        await page.click("[id$='definePipeline'] .opblock-summary")
        await page.click("[id$='definePipeline'] .try-out__btn")
        await page.click("[id$='definePipeline'] .execute")
        await page.wait_for_selector("[id$='definePipeline'] .live-responses-table")
        answered = await page.inner_text("[id$='definePipeline'] .live-responses-table")
        assert "final_pipeline" in answered
        assert "batch_12345" in answered
    assert seen.problems == []
    assert [address for address in seen.addresses if not address.startswith((service.base, "data:"))] == []
    assert f"{service.base}/openapi.json" in seen.addresses


@in_chromium
async def test_the_page_asks_for_a_token_where_the_service_does(
    redis_url: str, module_kafka: str, tmp_path: Path
) -> None:
    tokens, seen = tmp_path / "callers.json", Seen()
    tokens.write_text(json.dumps({"callers": [{"name": "operator", "scopes": [*Scope], "tokens": [TOKEN]}]}))
    async with (
        service_with(redis_url, module_kafka, http_tokens_file=tokens) as service,
        browser_page(seen) as page,
    ):
        await page.goto(f"{service.base}/docs")
        await page.fill("#token", "another-token-of-somebody")
        await page.click("#ask button")
        await page.wait_for_selector("#notice:has-text('does not know this token')")
        assert not await page.query_selector(".opblock")
        await page.fill("#token", TOKEN)
        await page.click("#ask button")
        assert await calls_shown(page) == {route.name for route in all_routes()}
        await page.click("[id$='showActors'] .opblock-summary")
        await page.click("[id$='showActors'] .try-out__btn")
        await page.click("[id$='showActors'] .execute")
        await page.wait_for_selector("[id$='showActors'] .live-responses-table")
        assert '"incarnation"' in await page.inner_text("[id$='showActors'] .live-responses-table")
    # Chromium itself notes each 401.
    assert [problem for problem in seen.problems if "401" not in problem] == []


async def test_the_page_is_absent_where_it_is_off_or_not_installed(
    redis_url: str, module_kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_with(redis_url, module_kafka) as service, Orchestrator(service.base) as caller:
        page = await caller.get("/docs")
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "script-src 'self';" in page.headers["Content-Security-Policy"]
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert (await caller.get("/docs/nothing.js")).status == 404
        page_files.documentation_files.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "swagger_ui_bundle", None)
            absent = await caller.get("/docs")
        page_files.documentation_files.cache_clear()
        assert (absent.status, "batch-conductor-service[docs]" in absent.json["detail"]) == (404, True)
    async with service_with(redis_url, module_kafka, docs=False) as service, Orchestrator(service.base) as caller:
        assert (await caller.get("/docs")).status == 404
