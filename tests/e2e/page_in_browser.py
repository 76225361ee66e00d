"""The page `/ui` in Chromium, beside a service that has something to show.

`python -m tests.e2e.page_in_browser` takes the pictures of docs/ui.md.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from bcs.wire import topics
from tests.support.events import phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until
from tests.surface.servers import embedded_servers

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES = 150_000
HALF_DONE, COMPLETE, FAILED = "class-7b", "class-7a", "class-8c"
HOSTILE = '<img src="x" onerror="alert(1)">"><script>alert(2)</script>'
"""The id of a batch that would become code if the page made HTML of it."""

PICTURES = {
    "ui-live.png": ("#/", "light"),
    "ui-batch.png": (f"#/batches/{HALF_DONE}?pipeline=comprehensive", "dark"),
    "ui-batches.png": ("#/batches", "light"),
    "ui-dead-letters.png": ("#/dead-letters", "light"),
}
_ESSAYS = ["anna", "ben", "cleo"]
_SIZE = {"width": 1200, "height": 780}
_READY = """() => document.body.dataset.connection === 'live' && !document.querySelector('[aria-busy]')
    && !/Reading|Searching/.test(document.querySelector('main').textContent)"""


def chromium() -> str | None:
    """The Chromium of this machine; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser_of(program: str) -> Iterator[Browser]:
    """A browser without a window. No browser is downloaded."""
    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox; it shows pages of this machine only.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, base: str, path: str, scheme: str = "light", *, checked: bool = False) -> Page:
    """A page, once it shows its data.

    :param checked: True to let axe-core into the page, which its policy would refuse.
    """
    context = browser.new_context(
        viewport=_SIZE,  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
        bypass_csp=checked,
        locale="en-GB",
        timezone_id="UTC",
    )
    page = context.new_page()
    page.goto(f"{base}/ui{path}")
    page.wait_for_function(_READY)
    return page


def fill(running: RunningService, *more: str) -> None:
    """Send events, so that each view has something to show.

    :param more: ids of further batches.
    """

    async def send() -> None:
        async with Platform(running.service.settings.kafka_bootstrap_servers) as platform:
            for batch in (HALF_DONE, COMPLETE, FAILED, *more):
                await platform.send(registered(batch, _ESSAYS))
            await platform.send(*(spellchecked(HALF_DONE, essay) for essay in _ESSAYS))
            await platform.send(phase_outcome(HALF_DONE, "nlp", _ESSAYS[:2], status="completed_with_failures"))
            await platform.send(*(spellchecked(COMPLETE, essay) for essay in _ESSAYS))
            await platform.send(spellchecked(FAILED, "anna"), spellchecked(FAILED, "ben", "failed"))
            await platform.send_raw(
                (topics.SPELLCHECK_COMPLETED, HALF_DONE.encode(), b"not JSON"),
                (topics.ESSAYS_REGISTERED, b"<b>bold</b>", b'{"event_id": "<script>alert(3)</script>"}'),
            )
            await wait_until(lambda: platform.caught_up(running.group))
        async with Orchestrator(running.base) as caller:
            await caller.define(HALF_DONE, "ai_feedback", batch_metadata={"prompt_attached": True})

            async def two_dead_letters() -> bool:
                return len((await caller.get("/internal/v1/dead-letters")).json.get("dead_letters", ())) == 2

            await wait_until(two_dead_letters)

    running.run(send)


def take_pictures(browser: Browser, running: RunningService, directory: Path, *, seconds: int) -> None:
    """Take the pictures of docs/ui.md.

    :param seconds: how long the service answers requests before the picture of the charts.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, (path, scheme) in PICTURES.items():
        page = opened(browser, running.base, path, scheme)
        if path == "#/":
            page.set_viewport_size({"width": _SIZE["width"], "height": 960})
            for second in range(seconds):
                running.run(_ask, running, 4 + (second * 7) % 12)
                page.wait_for_timeout(1000)
        page.screenshot(path=directory / name)
        page.context.close()


async def _ask(running: RunningService, times: int) -> None:
    async with (
        Orchestrator(running.base) as caller,
        Platform(running.service.settings.kafka_bootstrap_servers) as platform,
    ):
        for _ in range(times):
            await caller.define(COMPLETE, "spellcheck")
        await platform.send(*(spellchecked(COMPLETE, essay) for essay in _ESSAYS[: times % 3 + 1]))


def main() -> int:
    """Take the pictures."""
    program = chromium()
    if program is None:
        sys.stderr.write("there is no Chromium (Debian's package `chromium`)\n")
        return 1
    with (
        embedded_servers() as servers,
        service_in_thread(
            redis_url=servers.redis_url,
            kafka_bootstrap_servers=servers.kafka,
            database_url=servers.database_url,
            instance_name="bcs-0",
            environment="development",
        ) as running,
    ):
        fill(running)
        with browser_of(program) as browser:
            take_pictures(browser, running, IMAGES, seconds=45)
    return 0


if __name__ == "__main__":
    sys.exit(main())
