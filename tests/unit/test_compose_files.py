"""The files for Compose agree with BCS and with each other. Nothing starts them: the suite has no Docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bcs import __version__
from bcs.config.loading import load_settings
from bcs.config.settings import Settings
from bcs.wire import topics
from tests.support.kubernetes_files import documents

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "config" / "compose"
[FILE] = documents(COMPOSE / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = FILE["services"]


def mounts(service: str) -> dict[str, str]:
    """The paths in the container, each with what is mounted there."""
    split = [mount.split(":") for mount in SERVICES[service].get("volumes", [])]
    return {inside: outside for outside, inside, *_ in split}


def test_bcs_gets_settings_that_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SERVICES["bcs"]["environment"]
    assert set(given) <= {f"BCS_{name.upper()}" for name in Settings.model_fields}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert SERVICES["bcs"]["ports"] == [f"127.0.0.1:{settings.http_port}:{settings.http_port}"]
    assert int(SERVICES["bcs"]["stop_grace_period"].removesuffix("s")) > settings.shutdown_seconds + 10
    urls = [value for value in given.values() if ":" in value]
    hosts = {re.split(r"[:/]", url.split("@")[-1].split("://")[-1])[0] for url in urls}
    assert hosts == {"kafka", "valkey", "postgres"}
    assert SERVICES["bcs"]["image"].endswith(f":{__version__}")


def test_services_wait_for_each_other_and_say_how_they_are() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ends or "healthcheck" in SERVICES[other], (name, other)
        assert "healthcheck" in service or name == "topics"
        assert re.search(r":v?\d+\.?\d*", service["image"]), "a version, not the newest"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "nothing is secured here"


def test_what_is_mounted_is_there_and_what_is_kept_has_a_volume() -> None:
    kept = set()
    for service in SERVICES:
        for outside in mounts(service).values():
            if outside.startswith("."):
                assert (COMPOSE / outside).exists(), outside
            else:
                kept.add(outside)
    assert kept == set(FILE["volumes"])


def test_the_topics_are_those_of_bcs() -> None:
    script = (COMPOSE / "topics.sh").read_text()
    dry = re.sub(r"(?s)make\(\) \{.*?\n\}", 'make() { echo "$1 $3"; }', script)
    made = subprocess.run(["/bin/sh", "-c", dry], capture_output=True, text=True, check=True).stdout
    days = {topic: int(ms) / 86_400_000 for topic, ms in (line.split() for line in made.splitlines())}
    assert sorted(days) == sorted([*topics.CONSUMED, *topics.PUBLISHED])
    assert {topic for topic, kept in days.items() if kept == 30} == set(topics.DEAD_LETTERS)
    assert set(days.values()) == {14, 30}


def test_prometheus_scrapes_bcs_as_the_alerts_expect_and_grafana_asks_prometheus() -> None:
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    [scraped] = config["scrape_configs"]
    assert (scraped["job_name"], scraped["static_configs"]) == ("bcs", [{"targets": ["bcs:4002"]}])
    [rules] = config["rule_files"]
    assert mounts("prometheus")[rules] == "../prometheus-rules.yml"
    [source] = yaml.safe_load((COMPOSE / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((COMPOSE / "grafana/dashboards/bcs.yaml").read_text())["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "../grafana"
