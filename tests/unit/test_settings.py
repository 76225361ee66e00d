"""Settings: the brief's names and defaults, and wrong values that name their variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from bcs.config.loading import load_settings
from bcs.config.settings import Environment, InvalidSettings, Settings
from bcs.config.unknown import unknown_variables
from bcs.errors import ConfigurationError


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("BCS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("http_host", "0.0.0.0"),
        ("http_port", 4002),
        ("log_level", "INFO"),
        ("http_timeout", 30.0),
        ("use_mock_repository", False),
        ("environment", Environment.DEVELOPMENT),
        ("kafka_bootstrap_servers", "kafka:9092"),
        ("redis_url", "redis://localhost:6379"),
        ("redis_ttl_seconds", 604_800),
        ("pipeline_config_path", None),
        ("kafka_consumer_group_id", "bcs-event-consumer"),
        ("kafka_auto_offset_reset", "earliest"),
        ("kafka_enable_idempotence", True),
        ("http_max_body_bytes", 1024 * 1024),
        ("redis_commit_attempts", 5),
    ],
)
def test_the_defaults_are_those_of_the_brief(name: str, default: object) -> None:
    assert _plain(getattr(load_settings(), name)) == default


@pytest.mark.parametrize(
    ("rate", "burst"), [(None, 1), ("0.1", 1), ("2.5", 3), ("40", 40)], ids=["no limit", "slow", "rounded up", "fast"]
)
def test_the_burst_follows_the_rate(monkeypatch: pytest.MonkeyPatch, rate: str | None, burst: int) -> None:
    if rate:
        monkeypatch.setenv("BCS_HTTP_RATE_PER_SECOND", rate)
    assert load_settings().http_rate_burst == burst
    monkeypatch.setenv("BCS_HTTP_RATE_BURST", "7")
    assert load_settings().http_rate_burst == 7


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan", "many"])
def test_a_rate_that_is_no_rate_is_refused(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv("BCS_HTTP_RATE_PER_SECOND", rate)
    with pytest.raises(InvalidSettings) as raised:
        load_settings()
    assert [variable for variable, _ in raised.value.problems] == ["BCS_HTTP_RATE_PER_SECOND"]


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("BCS_HTTP_HOST", "127.0.0.1", "http_host", "127.0.0.1"),
        ("BCS_HTTP_PORT", "0", "http_port", 0),
        ("BCS_HTTP_PORT", "65535", "http_port", 65_535),
        ("BCS_LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("BCS_HTTP_TIMEOUT", "45", "http_timeout", 45.0),
        ("BCS_HTTP_TIMEOUT", " 30s ", "http_timeout", 30.0),
        ("BCS_HTTP_TIMEOUT", "7.5 s", "http_timeout", 7.5),
        ("BCS_USE_MOCK_REPOSITORY", "true", "use_mock_repository", True),
        ("BCS_USE_MOCK_REPOSITORY", "0", "use_mock_repository", False),
        ("BCS_ENVIRONMENT", "production", "environment", Environment.PRODUCTION),
        ("BCS_ENVIRONMENT", "testing", "environment", Environment.TESTING),
        ("BCS_KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2", "kafka_bootstrap_servers", "a:1,b:2"),
        ("BCS_REDIS_URL", "rediss://user:secret@host:1/2", "redis_url", "rediss://user:secret@host:1/2"),
        ("BCS_REDIS_TTL_SECONDS", "1", "redis_ttl_seconds", 1),
        (
            "BCS_DATABASE_URL",
            "postgres://u:p%40@a:1,[::1]:2/db?sslmode=disable",
            "database_url",
            "postgres://u:p%40@a:1,[::1]:2/db?sslmode=disable",
        ),
        ("BCS_DATABASE_URL", "postgresql:///db?host=/run", "database_url", "postgresql:///db?host=/run"),
        ("BCS_DATABASE_DEADLINE_SECONDS", "2s", "database_deadline_seconds", 2.0),
        ("BCS_PIPELINE_CONFIG_PATH", "/etc/p.yaml", "pipeline_config_path", Path("/etc/p.yaml")),
        ("BCS_KAFKA_CONSUMER_GROUP_ID", "g", "kafka_consumer_group_id", "g"),
        ("BCS_KAFKA_AUTO_OFFSET_RESET", "latest", "kafka_auto_offset_reset", "latest"),
        ("BCS_KAFKA_ENABLE_IDEMPOTENCE", "false", "kafka_enable_idempotence", False),
    ],
)
def test_a_variable_sets_its_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, name: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert _plain(getattr(load_settings(), name)) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("BCS_HTTP_PORT", "http"),
        ("BCS_HTTP_PORT", "65536"),
        ("BCS_HTTP_PORT", "-1"),
        ("BCS_LOG_LEVEL", "LOUD"),
        ("BCS_HTTP_TIMEOUT", "soon"),
        ("BCS_HTTP_TIMEOUT", "0"),
        ("BCS_HTTP_TIMEOUT", "-1s"),
        ("BCS_HTTP_TIMEOUT", "inf"),
        ("BCS_HTTP_TIMEOUT", "nan"),
        ("BCS_USE_MOCK_REPOSITORY", "perhaps"),
        ("BCS_ENVIRONMENT", "staging"),
        ("BCS_REDIS_URL", "localhost:6379"),
        ("BCS_REDIS_URL", "http://localhost:6379"),
        ("BCS_REDIS_URL", "redis://localhost:port/0"),
        ("BCS_REDIS_URL", "redis://localhost:99999"),
        ("BCS_REDIS_URL", "redis://localhost?socket_timeout=soon"),
        ("BCS_DATABASE_URL", "localhost:5432"),
        ("BCS_DATABASE_URL", "redis://localhost"),
        ("BCS_DATABASE_URL", "postgresql://localhost:port/db"),
        ("BCS_DATABASE_URL", "postgresql://a:1,b:99999/db"),
        ("BCS_DATABASE_URL", "postgresql://[::1/db"),
        ("BCS_DATABASE_URL", "postgresql://user:p@ss@host/db"),
        ("BCS_DATABASE_URL", "postgresql://host/db?sslmode"),
        ("BCS_DATABASE_MAX_CONNECTIONS", "0"),
        ("BCS_DATABASE_DEADLINE_SECONDS", "0"),
        ("BCS_ARCHIVE_MAX_ENTRIES", "0"),
        ("BCS_ARCHIVE_RETENTION_DAYS", "0"),
        ("BCS_REDIS_TTL_SECONDS", "0"),
        ("BCS_REDIS_TTL_SECONDS", "1.5"),
        ("BCS_REDIS_TTL_SECONDS", "9" * 19),  # Redis takes no such time to live
        ("BCS_KAFKA_AUTO_OFFSET_RESET", "none"),
        ("BCS_REQUEST_DEADLINE_SECONDS", "30"),
        ("BCS_REDIS_DEADLINE_SECONDS", "5"),
        ("BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS", "16"),
        ("BCS_HANG_SECONDS", "24"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    [(named, problem)] = refusal.value.problems
    assert named == variable
    assert problem
    assert f"{variable}: {problem}" in str(refusal.value)
    assert isinstance(refusal.value, ConfigurationError)


def test_several_wrong_values_are_all_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"BCS_HTTP_PORT": "x", "BCS_REDIS_TTL_SECONDS": "-1", "BCS_ENVIRONMENT": "moon", "BCS_LOG_LEVEL": "x"}
    for variable, text in wrong.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert {variable for variable, _ in refusal.value.problems} == wrong.keys()
    assert all(variable in str(refusal.value) for variable in wrong)


def test_values_that_contradict_each_other_are_all_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"BCS_REQUEST_DEADLINE_SECONDS": "40", "BCS_REDIS_DEADLINE_SECONDS": "50", "BCS_REDIS_URL": "nowhere"}
    for variable, text in wrong.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert {variable for variable, _ in refusal.value.problems} == wrong.keys()


def test_the_database_deadline_must_be_below_the_request_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BCS_DATABASE_DEADLINE_SECONDS", "5")
    assert load_settings().database_url is None
    monkeypatch.setenv("BCS_DATABASE_URL", "postgresql://host/db")
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert [variable for variable, _ in refusal.value.problems] == ["BCS_DATABASE_DEADLINE_SECONDS"]


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("BCS_REDIS_URL", "http://user:secret@host"),
        ("BCS_REDIS_URL", "redis://user:secret/@host/0"),
        ("BCS_DATABASE_URL", "http://user:secret@host"),
        ("BCS_DATABASE_URL", "postgresql://user:secret/@host/db"),  # what looks like a port is half a password
        ("BCS_DATABASE_URL", "postgresql://user:secret@host:port/db"),
    ],
)
def test_a_refusal_does_not_repeat_secrets(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert "secret" not in str(refusal.value)


def test_the_record_must_remember_for_longer_than_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCS_ARCHIVE_RETENTION_DAYS", "7")
    load_settings()  # without a record it says nothing
    monkeypatch.setenv("BCS_DATABASE_URL", "postgresql://host/db")
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert [variable for variable, _ in refusal.value.problems] == ["BCS_ARCHIVE_RETENTION_DAYS"]


def test_an_empty_variable_is_an_unset_one_for_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = load_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"BCS_{name.upper()}", "")
    assert load_settings() == unset


@pytest.mark.parametrize(
    ("variable", "text", "follows"),
    [
        ("BCS_HTTP_TIMEOUT", "5", "request_deadline_seconds"),
        ("BCS_HTTP_TIMEOUT", "0.5s", "redis_deadline_seconds"),
        ("BCS_REQUEST_DEADLINE_SECONDS", "1", "database_deadline_seconds"),
        ("BCS_KAFKA_SESSION_TIMEOUT_SECONDS", "5", "kafka_heartbeat_interval_seconds"),
        ("BCS_KAFKA_REQUEST_TIMEOUT_SECONDS", "40", "hang_seconds"),
        ("BCS_REDIS_TTL_SECONDS", str(500 * 86_400), "archive_retention_days"),
    ],
)
def test_the_defaults_of_others_follow_a_setting_that_is_set_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, follows: str
) -> None:
    usual = load_settings()
    monkeypatch.setenv("BCS_DATABASE_URL", "postgresql://host/db")
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), follows) != getattr(usual, follows)


def test_overrides_stand_above_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCS_HTTP_PORT", "5000")
    monkeypatch.setenv("BCS_HTTP_HOST", "::1")
    settings = load_settings(http_port=6000, redis_ttl_seconds=9)
    assert (settings.http_port, settings.http_host, settings.redis_ttl_seconds) == (6000, "::1", 9)


def test_a_wrong_override_is_named_by_its_variable() -> None:
    with pytest.raises(InvalidSettings) as refusal:
        load_settings(http_port=-1)
    assert [variable for variable, _ in refusal.value.problems] == ["BCS_HTTP_PORT"]


def test_every_setting_has_a_description_for_the_readme() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_an_unknown_variable_is_named_with_the_one_that_was_meant() -> None:
    unknown = unknown_variables(
        {
            "BCS_HTPP_PORT": "1",
            "bcs_redis_ttl": "1",
            "BCS_PORT": "4002",
            "BCS_FROBNICATE": "yes",
            # Settings, whatever their letters, and what others set.
            "bcs_http_port": "1",
            "BCS_TEST_REDIS_URL": "redis://elsewhere",
            "_BCS_COMPLETE": "complete_bash",
            "PATH": "/bin",
            # What Kubernetes sets beside services that are called bcs and bcs-http.
            "BCS_SERVICE_HOST": "10.0.0.1",
            "BCS_SERVICE_PORT_HTTP": "4002",
            "BCS_HTTP_SERVICE_PORT": "4002",
            "BCS_PORT_4002_TCP_ADDR": "10.0.0.1",
            "BCS_WEB_PORT": "tcp://10.0.0.1:4002",
        }
    )
    assert {each.name: each.near for each in unknown} == {
        "BCS_HTPP_PORT": "BCS_HTTP_PORT",
        "bcs_redis_ttl": "BCS_REDIS_TTL_SECONDS",
        "BCS_PORT": "BCS_HTTP_PORT",
        "BCS_FROBNICATE": None,
    }
    assert str(unknown[0]) == "BCS_FROBNICATE is not a setting of BCS, and has no effect"
