"""What can be seen of the service from outside is what was accepted: see `comparing.ACCEPT`."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from tests.surface.comparing import ACCEPT, DIRECTORY, Surface, accept, accepted, difference
from tests.surface.families import LEAST, OF_THE_STORY, WITHOUT_SERVERS
from tests.surface.log_events import NotReadable, facts_of_log_events
from tests.surface.metrics import facts_of_metrics
from tests.surface.scenario import Servers, play
from tests.surface.settings import facts_of_settings


@pytest.fixture(scope="module")
def story(redis_url: str, module_kafka: str, postgres_url: str, module_database_url: str) -> Surface:
    """What was seen of a service that lived through the story."""
    return anyio.run(play, Servers(redis_url, module_kafka, postgres_url, module_database_url))


@pytest.mark.parametrize("family", WITHOUT_SERVERS)
def test_the_surface_is_the_accepted_one(family: str) -> None:
    found = difference(family, accepted(family), WITHOUT_SERVERS[family]())
    assert not found, found


@pytest.mark.parametrize("family", OF_THE_STORY)
def test_the_surface_of_a_running_service_is_the_accepted_one(family: str, story: Surface) -> None:
    found = difference(family, accepted(family), story[family])
    assert not found, found


def test_the_story_tells_each_family_that_needs_servers(story: Surface) -> None:
    assert story.keys() == set(OF_THE_STORY)


@pytest.mark.parametrize("family", LEAST)
def test_as_much_is_accepted_as_there_has_to_be(family: str) -> None:
    facts = accepted(family)
    assert len(facts) >= LEAST[family]
    assert all(fact.strip() for fact in facts)


def test_no_snapshot_is_left_of_a_family_that_is_gone() -> None:
    assert {file.stem for file in DIRECTORY.iterdir()} == LEAST.keys()


@pytest.mark.parametrize("family", LEAST)
def test_a_fact_that_is_gone_or_new_or_another_one_is_reported(family: str) -> None:
    facts = accepted(family)
    middle = len(facts) // 2
    fact = facts[middle]
    changed = [*facts[:middle], f"{fact}, changed", *facts[middle + 1 :]]
    assert f"\n-{fact}\n" in difference(family, facts, [*facts[:middle], *facts[middle + 1 :]])
    assert "\n+one more\n" in difference(family, facts, [*facts, "one more"])
    said = difference(family, facts, changed)
    assert f"\n-{fact}\n" in said
    assert f"\n+{fact}, changed\n" in said
    assert said.endswith(f"{ACCEPT} {family}")


def test_what_is_accepted_no_longer_differs(tmp_path: Path) -> None:
    assert difference("metrics", accepted("metrics", tmp_path), ["one fact"])
    accept("metrics", ["one fact"], tmp_path)
    assert not difference("metrics", accepted("metrics", tmp_path), ["one fact"])


def test_a_metric_that_is_gone_and_one_that_is_new_are_told() -> None:
    before, registry = facts_of_metrics(Telemetry().registry), Telemetry().registry
    [gone] = [
        each for each in registry._collector_to_names if "bcs_outbox_backlog" in registry._collector_to_names[each]
    ]
    registry.unregister(gone)
    Counter("bcs_new_total", "New.", ["kind"], registry=registry)
    lines = difference("metrics", before, facts_of_metrics(registry)).splitlines()
    assert "-bcs_outbox_backlog: gauge" in lines
    assert {"+bcs_new_total: counter", "+bcs_new_total: help: New.", "+bcs_new_total: label kind"} <= set(lines)


def test_an_empty_registry_has_no_facts() -> None:
    assert facts_of_metrics(CollectorRegistry()) == []


def test_another_default_and_another_limit_of_a_setting_are_told() -> None:
    class Others(Settings):
        retry_after_seconds: int = Field(2, ge=0, description="what `Retry-After` tells callers")

    lines = difference("settings", facts_of_settings(Settings), facts_of_settings(Others)).splitlines()
    assert {"-BCS_RETRY_AFTER_SECONDS.default = 1", "+BCS_RETRY_AFTER_SECONDS.default = 2"} <= set(lines)
    assert {"-BCS_RETRY_AFTER_SECONDS.minimum = 1", "+BCS_RETRY_AFTER_SECONDS.minimum = 0"} <= set(lines)


def test_a_default_that_says_nothing_is_told_too() -> None:
    class Small(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="X_")
        wanted: bool = False
        name: str | None = None

    assert {"X_WANTED.default = false", "X_NAME.default = null"} <= set(facts_of_settings(Small))


LOGGING = """
import structlog
log = structlog.stdlib.get_logger("bcs.part", actor="one")

def about(request):
    return {"batch_id": request, "seconds": 1}

def refuse(request, down):
    event = "refused" if down else "gone"
    log.warning(event, problem=down, summed_by=("problem",), **about(request))
"""


def test_events_of_the_log_are_read_with_their_fields_wherever_they_stand(tmp_path: Path) -> None:
    package = tmp_path / "bcs"
    (package / "deep").mkdir(parents=True)
    (package / "deep" / "module.py").write_text(LOGGING)
    fields = "actor='one', batch_id, problem, seconds"
    assert facts_of_log_events(package) == [
        f"bcs.part: warning: gone: {fields}",
        f"bcs.part: warning: refused: {fields}",
    ]


def test_an_event_of_the_log_that_another_module_says_is_read(tmp_path: Path) -> None:
    package = tmp_path / "bcs"
    package.mkdir()
    (package / "one.py").write_text(LOGGING)
    (package / "two.py").write_text("from bcs.one import log as said\n\nsaid.info('told', where=1)\n")
    assert "bcs.part: info: told: actor='one', where" in facts_of_log_events(package)


@pytest.mark.parametrize("call", ["log.info(f'{__name__}_told')", "self.log.info('told')", "logger.info('told')"])
def test_an_event_of_the_log_that_can_not_be_read_is_an_error(tmp_path: Path, call: str) -> None:
    package = tmp_path / "bcs"
    package.mkdir()
    (package / "one.py").write_text(f"{LOGGING}\n{call}\n")
    with pytest.raises(NotReadable):
        facts_of_log_events(package)
