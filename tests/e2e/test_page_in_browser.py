"""The page `/ui` in Chromium: what it shows, the keyboard, accessibility, restarts, tokens, and what it changes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from bcs.http.identity import Scope
from tests.e2e.page_in_browser import (
    COMPLETE,
    FAILED,
    HALF_DONE,
    HOSTILE,
    IMAGES,
    MOST_BYTES,
    PICTURES,
    browser_of,
    chromium,
    fill,
    opened,
    take_pictures,
)
from tests.support.callers import TOKENS, callers
from tests.support.service import BcsProcess, RunningService, serve, service_in_thread

ROOT = Path(__file__).parents[2]
VIEWS = ["#/", "#/pipelines", "#/batches", f"#/batches/{HALF_DONE}", "#/batches/unknown-batch", "#/dead-letters"]


@pytest.fixture(scope="module")
def service(redis_url: str, module_kafka: str, module_database_url: str) -> Iterator[RunningService]:
    with service_in_thread(
        redis_url=redis_url,
        kafka_bootstrap_servers=module_kafka,
        database_url=module_database_url,
        chaos_enabled=True,
        restart_max=100,
    ) as running:
        fill(running, HOSTILE)
        yield running


@pytest.fixture(scope="module")
def browser(service: RunningService) -> Iterator[Browser]:
    assert service  # it starts before Playwright, which has a loop of its own in this thread
    program = chromium()
    if program is None:
        pytest.skip("no Chromium: the program `chromium` (Debian's package) is not installed")
    with browser_of(program) as running:
        yield running


@pytest.fixture(autouse=True)
def closed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "browser" in request.fixturenames:
        for context in request.getfixturevalue("browser").contexts:
            context.close()


def row(page: Page, path: str) -> Any:
    return page.locator(f'tr[data-path="{path}"]')


def restarts(page: Page, path: str) -> Any:
    return row(page, path).locator("td").nth(2)


def connection(page: Page) -> Any:
    return page.locator("#connection")


@pytest.mark.release
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_view_and_dialog_is_accessible(browser: Browser, service: RunningService, scheme: str) -> None:
    def check(where: str) -> None:
        found = Axe().run(page)
        assert found.violations_count == 0, f"{where}: {found.generate_report()}"

    for view in VIEWS:
        page = opened(browser, service.base, view, scheme, checked=True)
        check(view)
        page.get_by_label("Allow changes").check()
        if view == "#/":
            page.get_by_role("button", name="Kill publisher").click()
        elif view == "#/dead-letters":
            page.get_by_label("Choose all").check()
            page.get_by_role("button", name=re.compile("Replay 2")).click()
        elif view == f"#/batches/{HALF_DONE}":
            page.get_by_role("button", name="Take completions back").click()
        else:
            page.context.close()
            continue
        expect(page.get_by_role("dialog")).to_be_visible()
        check(f"{view}, its dialog")
        page.context.close()


@pytest.mark.release
def test_the_keyboard_is_enough(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/")
    focused = "document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the content"
    reached = []
    while "Batches" not in reached:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
        assert len(reached) < 10
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Batches")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type(HALF_DONE)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Batch {HALF_DONE}")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    changes = page.get_by_label("Allow changes")
    changes.focus()
    page.keyboard.press("Space")
    force = page.get_by_role("button", name="Resolve with force")
    force.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(force).to_be_focused()
    # No element keeps the focus: Tab leads around.
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "Skip to the content":
            break
    else:
        pytest.fail("Tab does not come around")


@pytest.mark.release
def test_a_killed_actor_is_seen_within_two_seconds(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/")
    worst = 0.0
    for _ in range(4):
        before = int(restarts(page, "publisher").inner_text())
        began = time.perf_counter()
        service.call(service.service.root.kill, "publisher", "killed by a test")
        expect(restarts(page, "publisher")).to_have_text(str(before + 1), timeout=2000)
        worst = max(worst, time.perf_counter() - began)
        expect(row(page, "publisher")).to_contain_text("killed by a test")
    assert worst < 2
    print(f"a killed actor was seen after {worst:.2f} s at most")  # noqa: T201
    expect(page.locator("#announcer")).to_contain_text("publisher was started again")


@pytest.mark.release
def test_a_restart_of_the_http_actor_is_survived(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/")
    before = int(restarts(page, "http").inner_text())
    service.call(service.service.root.kill, "http", "killed by a test")
    expect(restarts(page, "http")).to_have_text(str(before + 1), timeout=20_000)
    expect(connection(page)).to_have_text("live")


@pytest.mark.release
def test_a_restart_of_the_process_is_survived(
    browser: Browser, redis_url: str, module_kafka: str, tmp_path: Path
) -> None:
    with serve(tmp_path / "first", redis_url, module_kafka, forked=False) as first:
        answers(first)
        page = opened(browser, first.base, "#/")
        process = page.evaluate("document.body.dataset.session")
        first.signal(signal.SIGKILL)
        expect(connection(page)).to_have_text("connection lost, retrying", timeout=10_000)
    with BcsProcess(tmp_path / "second", "serve", **first.environment) as second:
        answers(second)
        expect(connection(page)).to_have_text("live", timeout=30_000)
        assert page.evaluate("document.body.dataset.session") != process
        expect(row(page, "intake")).to_contain_text("running", timeout=10_000)


def answers(process: BcsProcess) -> None:
    """Wait until a process answers."""
    # Playwright has a loop of its own in this thread.
    with start_blocking_portal("asyncio") as portal:
        portal.call(process.answers, "/healthz")


@pytest.mark.release
def test_the_page_pauses_while_it_is_hidden(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/")
    hide = """(hidden) => { Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true});
        document.dispatchEvent(new Event('visibilitychange')); }"""
    page.evaluate(hide, True)
    expect(connection(page)).to_have_text("paused while hidden")
    registry = service.service.telemetry.registry

    def open_streams() -> float | None:
        return service.call(registry.get_sample_value, "bcs_ui_streams")

    deadline = time.monotonic() + 10
    while open_streams():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    page.evaluate(hide, False)
    expect(connection(page)).to_have_text("live")


@pytest.mark.release
def test_a_hostile_id_and_hostile_messages_stay_text(browser: Browser, service: RunningService) -> None:
    page = browser.new_context().new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: seen.append(dialog.message))
    page.goto(f"{service.base}/ui#/batches")
    link = page.get_by_role("link", name=HOSTILE)
    expect(link).to_be_visible()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Batch {HOSTILE}")
    expect(page.locator("ol.history li").first).to_be_visible()
    page.goto(f"{service.base}/ui#/dead-letters")
    expect(page.get_by_role("row", name=re.compile("not json")).first).to_be_visible()
    assert page.locator("main img, main script, main b").count() == 0
    assert seen == []
    # The policy holds: a script that got in would not run.
    page.evaluate("""() => { const script = document.createElement('script');
        try { script.text = 'window.ran = true'; document.body.append(script); } catch { /* trusted types */ } }""")
    assert page.evaluate("window.ran") is None


@pytest.mark.release
def test_batches_are_found_and_explained(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/batches")
    page.get_by_label("State").select_option("blocked")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("link", name=FAILED)).to_be_visible()
    expect(page.get_by_role("link", name=COMPLETE)).to_have_count(0)
    page.get_by_role("link", name=FAILED).click()
    expect(page.locator(".phase-failed text.name")).to_have_text(["spellcheck"])
    expect(page.locator("main")).to_contain_text("1 of 3 essays completed it; failed: ben; missing: cleo")
    page.goto(f"{service.base}/ui#/batches/{HALF_DONE}?pipeline=ai_feedback")
    expect(page.locator(".phase-complete text.name")).to_have_text(["spellcheck"])
    expect(page.locator("ol.history")).to_contain_text("ai_feedback was asked for")


@pytest.mark.release
def test_a_batch_is_resolved_with_force_and_completions_are_taken_back(
    browser: Browser, service: RunningService
) -> None:
    page = opened(browser, service.base, f"#/batches/{COMPLETE}?pipeline=spellcheck")
    expect(page.get_by_role("button", name="Resolve with force")).to_have_count(0)
    page.get_by_label("Allow changes").check()
    page.get_by_role("button", name="Resolve with force").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("spellcheck").check()
    dialog.get_by_role("button", name="Show what would happen").click()
    expect(dialog).to_contain_text("1 of 1 phases")
    dialog.get_by_role("button", name="Resolve with force").click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_text("Resolved with force: spellcheck to run.")).to_be_visible()
    expect(page.locator("ol.history")).to_contain_text("With force spellcheck.")

    page.get_by_role("button", name="Take completions back").click()
    dialog.get_by_label("spellcheck").check()
    dialog.get_by_label("Reason, for the history").fill("the dictionary was wrong")
    dialog.get_by_role("button", name="Show what would happen").click()
    expect(dialog).to_contain_text("3 completions")
    dialog.get_by_role("button", name="Take the completions back").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".phase-open text.name")).to_have_text(["spellcheck"])
    expect(page.locator("ol.history")).to_contain_text("the dictionary was wrong")


@pytest.mark.release
def test_a_dead_letter_is_replayed(browser: Browser, service: RunningService) -> None:
    page = opened(browser, service.base, "#/dead-letters")
    page.get_by_label("Allow changes").check()
    letter = page.locator("tbody tr").filter(has_text="not json").first
    letter.get_by_role("checkbox").check()
    page.get_by_role("button", name="Replay 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Replay").click()
    expect(page.get_by_text("1 replayed, 0 failed.").first).to_be_visible(timeout=20_000)


@pytest.mark.release
def test_a_token_decides_what_is_shown_and_offered(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "callers.json"
    both = {"name": "operator", "scopes": ["read", "operate"], "tokens": ["a-token-of-an-operator"]}
    file.write_text(callers(both))
    with service_in_thread(
        use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1", http_tokens_file=file, chaos_enabled=True
    ) as running:
        page = browser.new_context().new_page()
        page.goto(f"{running.base}/ui")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("send the header Authorization")
        for token, kills in ((TOKENS[Scope.READ], 0), ("a-token-of-an-operator", 5)):
            if not dialog.count():
                page.get_by_role("button", name="Token…").click()
            dialog.get_by_label("Token").fill(token)
            dialog.get_by_role("button", name="Use the token").click()
            expect(row(page, "publisher")).to_contain_text("running")
            expect(page.get_by_role("button", name=re.compile("^Kill "))).to_have_count(kills)
            expect(page.get_by_label("Allow changes")).not_to_be_visible()
        kept = page.evaluate("[location.href, document.cookie, localStorage.length, sessionStorage.length]")
        assert kept == [f"{running.base}/ui", "", 0, 0]
        page.reload()
        expect(dialog).to_be_visible()


@pytest.mark.release
def test_the_pictures_of_the_page_can_be_taken_and_are_small(
    browser: Browser, service: RunningService, tmp_path: Path
) -> None:
    take_pictures(browser, service, tmp_path, seconds=2)
    for name in PICTURES:
        assert 5_000 < (tmp_path / name).stat().st_size < MOST_BYTES, name


def test_the_document_shows_each_picture() -> None:
    named = re.findall(r"!\[[^\]]+\]\(images/(ui-.+?)\)", (ROOT / "docs" / "ui.md").read_text())
    assert sorted(named) == sorted(PICTURES) == sorted(each.name for each in IMAGES.glob("ui-*.png"))
    assert all(each.stat().st_size < MOST_BYTES for each in IMAGES.glob("ui-*.png"))
