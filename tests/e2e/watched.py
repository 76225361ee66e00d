"""A service under load that a real Prometheus scrapes, and the picture of its dashboard.

    python -m tests.e2e.watched

draws docs/images/dashboard.svg: every query of config/grafana/bcs.json, answered by that Prometheus.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import anyio
import yaml

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, kafka, valkey
from bcs.devtools.servers.postgres import postgres
from bcs.wire import topics
from tests.support.alert_stories import RULES
from tests.support.dashboard import ROWS, WINDOW, Panel
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, create_platform_topics
from tests.support.service import Orchestrator, serve
from tests.support.waiting import wait_until

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "dashboard.svg"
SECOND = "1s"
RATES_OVER = "10s"
_ROUNDS, _ROUND_SECONDS = 90, 0.4
_OUTAGE = range(40, 58)
_ESSAYS = 5
_ACROSS, _WIDTH, _HEIGHT, _MARGIN, _TITLE = 3, 480, 250, 8, 34
_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A Prometheus that has watched a service for a while.

    :param since: when the load began, in seconds since 1970.
    """

    url: str
    since: float

    def now(self, query: str) -> list[dict[str, Any]]:
        """The series that a query of the dashboard finds now."""
        return self._ask("query", query=query.replace(WINDOW, RATES_OVER))

    def course(self, query: str) -> list[dict[str, Any]]:
        """The series that a query of the dashboard finds, from the beginning on."""
        until = time.time()
        step = f"{(until - self.since) / _POINTS:.1f}"
        asked = {"query": query.replace(WINDOW, RATES_OVER), "step": step}
        return self._ask("query_range", start=str(self.since), end=str(until), **asked)

    def _ask(self, endpoint: str, **parameters: str) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 (of this machine)
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


@contextmanager
def prometheus(program: str, directory: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes a service each second, with the rules of BCS.

    :param target: host and port of the service.
    """
    directory.mkdir(parents=True)
    config = {
        "global": {"scrape_interval": SECOND, "scrape_timeout": SECOND, "evaluation_interval": SECOND},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "bcs", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def command(port: int) -> list[str]:
        return [
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={HOST}:{port}",
        ]

    def is_ready(port: int, _process_id: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with EmbeddedServer("prometheus", directory, None, command, is_ready) as server:
        yield f"http://{server.address}"


@asynccontextmanager
async def watched(program: str, directory: Path) -> AsyncIterator[Watched]:
    """A service that has had half a minute of load with all that a dashboard should show, Redis away for a while.

    :param program: Prometheus.
    """
    with (
        valkey(directory / "valkey", append_only=True) as redis,
        kafka(directory / "kafka") as broker,
        postgres(directory / "postgres", durable=False) as archive,
    ):
        await create_platform_topics(broker.address)
        settings: dict[str, object] = {"BCS_DATABASE_URL": archive.url, "BCS_CHAOS_ENABLED": True, "forked": False}
        running = serve(directory / "bcs", f"redis://{redis.address}", broker.address, **settings)
        with running, prometheus(program, directory / "prometheus", running.base.removeprefix("http://")) as url:
            await running.answers()
            since = time.time()
            async with Platform(broker.address) as platform, Orchestrator(running.base) as caller:
                for number in range(_ROUNDS):
                    began = time.monotonic()
                    if number == _OUTAGE.start:
                        redis.freeze()
                    if number == _OUTAGE.stop:
                        redis.thaw()
                    await _one_round(platform, caller, number)
                    # Rounds come evenly.
                    await anyio.sleep(max(0.0, _ROUND_SECONDS - (time.monotonic() - began)))
                await wait_until(partial(_nothing_waits, caller))
                # For what is written after all else is done.
                await anyio.sleep(2 * _ROUND_SECONDS)
            yield Watched(url=url, since=since)


async def _one_round(platform: Platform, caller: Orchestrator, number: int) -> None:
    batch = f"class-{number}"
    essays = [f"{batch}-essay-{essay}" for essay in range(_ESSAYS)]
    await platform.send(registered(batch, essays), *(spellchecked(batch, essay) for essay in essays))
    for back in (1, 3, 5, 8):
        await caller.define(f"class-{max(0, number - back)}")
    if number % 10 == 5:
        await platform.send_raw((topics.PHASE_OUTCOME, b"key", b"no event"))
        await caller.define(batch, "no-such-pipeline")
        await caller.complete(batch, "nlp")
    if number in (20, 21):
        await caller.request("POST", "/internal/v1/actors/publisher/kill")
    if number == 25:
        await caller.request("POST", "/internal/v1/pipelines/reload")
        await caller.request(
            "POST", f"/internal/v1/batches/{batch}/invalidate", json={"phases": ["nlp"], "reason": "-"}
        )


async def _nothing_waits(caller: Orchestrator) -> bool:
    waiting = [await caller.metric(name) for name in ("bcs_outbox_backlog", "bcs_archive_backlog")]
    return waiting == [0, 0]


def drawn(found: Watched) -> str:
    """All panels that show anything, as one SVG."""
    parts, y, style = [], 0, ""
    for title, row in ROWS.items():
        charts = [chart for panel in row if (chart := _chart(panel, found)) is not None]
        parts.append(
            f'<text x="{_MARGIN}" y="{y + _TITLE - 10}" font-size="20" font-family="sans-serif">{title}</text>'
        )
        style = max(style, *map(_style, charts), key=len)
        y += _TITLE
        for place, chart in enumerate(charts):
            left, top = place % _ACROSS * _WIDTH, y + place // _ACROSS * _HEIGHT
            parts.append(_at(chart, left, top))
        y += -(-len(charts) // _ACROSS) * _HEIGHT
    size = f'width="{_ACROSS * _WIDTH}" height="{y}" viewBox="0 0 {_ACROSS * _WIDTH} {y}"'
    parts.insert(0, f'{style}<rect width="100%" height="100%" fill="white"/>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def _chart(panel: Panel, found: Watched) -> str | None:
    # Not at the top: pygal's finder makes all later imports warn, and a test takes a warning for a failure.
    import pygal
    from pygal.style import CleanStyle

    chart = pygal.XY(
        title=panel.title,
        width=_WIDTH - _MARGIN,
        height=_HEIGHT - _MARGIN,
        show_dots=False,
        stroke_style={"width": 1.5},
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        truncate_legend=40,
        style=CleanStyle(title_font_size=13, legend_font_size=9, label_font_size=9, major_label_font_size=9),
        show_x_guides=False,
        y_labels_major_count=3,
        show_minor_y_labels=False,
        include_x_axis=True,
        x_value_formatter=lambda seconds: f"{seconds:.0f} s",
        js=[],
        disable_xml_declaration=True,
    )
    shown = 0
    for query, legend in panel.queries.items():
        for series in found.course(query)[:8]:
            name = _name(legend, series["metric"])
            points = [(float(at) - found.since, float(value)) for at, value in series["values"]]
            points = [point for point in points if not isnan(point[1])]
            # What stays zero, as it should, is not worth a picture.
            if any(value for _, value in points):
                chart.add(name, points)
                shown += 1
    return str(chart.render(is_unicode=True)) if shown else None


def _name(legend: str, labels: Mapping[str, str]) -> str:
    """The legend of a series, as Grafana makes it; short."""
    for label in re.findall(r"\{\{(\w+)\}\}", legend):
        legend = legend.replace(f"{{{{{label}}}}}", labels.get(label, ""))
    return re.sub(r"huleedu\.|127\.0\.0\.1:\d+", "", legend).removesuffix(", ") or "bcs"


def _style(chart: str) -> str:
    """The style of a chart, for all charts: those with more series have more colours in it."""
    return "".join(re.findall(r"<style.*?</style>", _of_all(chart), re.DOTALL))


def _of_all(chart: str) -> str:
    return re.sub(r"#chart-[0-9a-f-]+", ".pygal-chart", chart)


def _small(chart: str) -> str:
    """Without its style, and without what nobody can see in a picture."""
    for part in (r"<style.*?</style>", r"<script.*?</script>", r"<!--.*?-->", r"<title>.*?</title>", r"\s+(?=<)"):
        chart = re.sub(part, "", chart, flags=re.DOTALL)
    # Tenths of a pixel are enough.
    return re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\d+\.\d)\d+", r"\1", path[0]), _of_all(chart))


def _at(chart: str, x: int, y: int) -> str:
    """A chart as a part of a larger picture."""
    return _small(chart).replace(
        "<svg ", f'<svg x="{x}" y="{y}" width="{_WIDTH - _MARGIN}" height="{_HEIGHT - _MARGIN}" ', 1
    )


async def _picture(program: str, directory: Path) -> str:
    async with watched(program, directory) as found:
        return drawn(found)


def main() -> None:
    """Draw the picture."""
    program = shutil.which("prometheus")
    assert program, "Debian's package `prometheus` is not installed"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs as another user
        picture = anyio.run(_picture, program, directory)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture)


if __name__ == "__main__":
    main()
