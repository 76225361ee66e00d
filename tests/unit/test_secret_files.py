"""Secrets from files: named by a variable, or in a directory; read again when they are needed, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bcs.config.loading import load_settings
from bcs.config.secrets import Secret, secret_variables
from bcs.config.settings import InvalidSettings, Settings
from bcs.config.unknown import unknown_secret_files, unknown_variables

FIRST = "redis://user:first-password@host:6379"
SECOND = "redis://user:second-password@host:6379"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("BCS_"):
            monkeypatch.delenv(name)


@pytest.fixture(params=["BCS_REDIS_URL_FILE", "BCS_SECRETS_DIR", "bcs_secrets_dir"])
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that the settings have as the secret of BCS_REDIS_URL."""
    in_directory = request.param.upper() == "BCS_SECRETS_DIR"
    path = tmp_path / ("bcs_redis_url" if request.param.islower() else "BCS_REDIS_URL")
    monkeypatch.setenv(request.param, str(tmp_path if in_directory else path))
    path.write_text(f"{FIRST}\n")
    return path


def test_a_secret_in_a_file_is_read_again_and_never_shown(file: Path) -> None:
    settings = load_settings()
    assert settings.redis_url.get_secret_value() == FIRST
    file.write_text(SECOND)
    assert settings.redis_url.get_secret_value() == SECOND
    assert "-password@" not in f"{settings!r} {settings} {settings.model_dump_json()} {settings.redis_url!r}"


def test_a_mounted_secret_is_replaced_as_kubernetes_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version, text in (("..1", FIRST), ("..2", SECOND)):
        tmp_path.joinpath(version).mkdir()
        tmp_path.joinpath(version, "BCS_REDIS_URL").write_text(text)
    tmp_path.joinpath("..data").symlink_to("..1")
    tmp_path.joinpath("BCS_REDIS_URL").symlink_to("..data/BCS_REDIS_URL")
    monkeypatch.setenv("BCS_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.redis_url.get_secret_value() == FIRST
    tmp_path.joinpath("..new").symlink_to("..2")
    tmp_path.joinpath("..new").rename(tmp_path / "..data")
    assert settings.redis_url.get_secret_value() == SECOND


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"redis://user:first-password\xff@host", "is not UTF-8 text"),
        (b"p" * 65_537, "has more than 65536 bytes"),
    ],
)
def test_while_a_file_is_unusable_the_text_before_is_used(file: Path, content: bytes | None, cause: str) -> None:
    settings = load_settings()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with capture_logs() as logs:
        read = [settings.redis_url.get_secret_value() for _ in range(3)]
    assert read == [FIRST] * 3
    assert [(entry["event"], entry["cause"], entry["file"]) for entry in logs] == [
        ("secret_file_unusable", cause, str(file))
    ]
    file.write_text(SECOND)
    assert settings.redis_url.get_secret_value() == SECOND


@pytest.mark.parametrize(
    "setting",
    [
        {"BCS_REDIS_PASSWORD_FILE": "{pipe}"},
        {"BCS_REDIS_URL": "rediss://host:6379?ssl_ca_certs={pipe}"},
        {"BCS_DATABASE_URL": "postgresql://host/bcs?sslmode=verify-full&sslrootcert={pipe}"},
        {"BCS_KAFKA_SECURITY_PROTOCOL": "SSL", "BCS_KAFKA_SSL_CAFILE": "{pipe}"},
        {
            "BCS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "BCS_KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            "BCS_KAFKA_OAUTH_TOKEN_FILE": "{pipe}",
        },
    ],
)
def test_a_pipe_is_refused_at_once_because_reading_it_would_stop_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: dict[str, str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, value in setting.items():
        monkeypatch.setenv(name, value.format(pipe=tmp_path / "pipe"))
    with pytest.raises(InvalidSettings, match="not a regular file"):
        load_settings()


def test_a_file_that_becomes_a_pipe_leaves_the_text_before(file: Path) -> None:
    settings = load_settings()
    file.unlink()
    os.mkfifo(file)
    assert settings.redis_url.get_secret_value() == FIRST


@pytest.mark.parametrize("content", [None, b"", b"redis://user:first-password\xff@host", b"p" * 65_537])
def test_a_start_with_an_unusable_file_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "redis"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("BCS_REDIS_URL_FILE", str(path))
    monkeypatch.setenv("BCS_HTTP_PORT", "x")
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    problems = dict(refusal.value.problems)
    assert problems.keys() == {"BCS_REDIS_URL", "BCS_HTTP_PORT"}
    assert "the file of BCS_REDIS_URL_FILE" in problems["BCS_REDIS_URL"]
    assert "password" not in str(refusal.value)


def test_a_file_has_to_hold_a_valid_address_too(file: Path) -> None:
    file.write_text("http://user:first-password@host")
    with pytest.raises(InvalidSettings, match="BCS_REDIS_URL: must begin with redis://") as refusal:
        load_settings()
    assert "password" not in str(refusal.value)


def test_a_variable_and_its_file_together_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.joinpath("redis").write_text(FIRST)
    monkeypatch.setenv("BCS_REDIS_URL_FILE", str(tmp_path / "redis"))
    monkeypatch.setenv("BCS_REDIS_URL", SECOND)
    with pytest.raises(InvalidSettings, match="BCS_REDIS_URL_FILE as well; only one may be"):
        load_settings()


def test_a_variable_wins_over_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.joinpath("BCS_REDIS_URL").write_text(FIRST)
    monkeypatch.setenv("BCS_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("BCS_REDIS_URL", SECOND)
    assert load_settings().redis_url.get_secret_value() == SECOND


def test_files_of_all_secrets_are_known_variables() -> None:
    named = {f"{variable}_FILE": "/file" for variable in secret_variables(Settings)}
    assert {"BCS_REDIS_URL_FILE", "BCS_DATABASE_URL_FILE"} <= named.keys()
    assert unknown_variables(named) == []
    [unknown] = unknown_variables({"BCS_REDIS_URL_FIEL": "/file"})
    assert unknown.near == "BCS_REDIS_URL_FILE"


def test_a_secret_without_a_file_keeps_its_text() -> None:
    assert Secret("text").get_secret_value() == "text"


def test_files_that_are_no_secrets_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BCS_REDIS_URL", "bcs_database_url", "..data", ".hidden", "BCS_REDIS_PASWORD", "redis_url", "notes"):
        tmp_path.joinpath(name).write_text("redis://host" if "redis" in name.lower() else "postgresql://host/db")
    monkeypatch.setenv("BCS_SECRETS_DIR", str(tmp_path))
    unknown = {each.name: (each.near, str(each)) for each in unknown_secret_files(load_settings())}
    assert {name: near for name, (near, _) in unknown.items()} == {
        "BCS_REDIS_PASWORD": "BCS_REDIS_PASSWORD",
        "redis_url": "BCS_REDIS_URL",
        "notes": None,
    }
    assert unknown["notes"][1] == "the file notes in BCS_SECRETS_DIR is not a secret of BCS, and has no effect"
    monkeypatch.delenv("BCS_SECRETS_DIR")
    assert unknown_secret_files(load_settings()) == []


def test_a_directory_of_secrets_that_can_t_be_read_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCS_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(InvalidSettings, match="BCS_SECRETS_DIR: can't be read: No such file or directory"):
        load_settings()
