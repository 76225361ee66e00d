"""The URL of a store, whose login is read again for each connection."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bcs.config.loading import load_settings
from bcs.config.redis_servers import RedisKind, RedisServers
from bcs.config.secrets import Secret
from bcs.config.settings import InvalidSettings
from bcs.config.store_urls import StoreUrl, database_url, redis_url


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("BCS_", "PG")):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a URL."""
    path = tmp_path / "url"
    path.write_text("redis://bcs:first@cache:6379/0")
    return path


@pytest.mark.parametrize(
    ("made", "url", "login_settings"),
    [
        (redis_url("redis://u:p@h/1"), "redis://u:p@h/1", "BCS_REDIS_URL"),
        (redis_url("redis://h"), "redis://h", "BCS_REDIS_URL"),
        (redis_url("redis://h", password=Secret("a/b@#")), "redis://:a%2Fb%40%23@h", "BCS_REDIS_PASSWORD"),
        (redis_url("rediss://u@h:1", password=Secret("p")), "rediss://u:p@h:1", "BCS_REDIS_URL and BCS_REDIS_PASSWORD"),
        (redis_url("redis://:p@h", username=Secret("ü")), "redis://%C3%BC:p@h", "BCS_REDIS_USERNAME and BCS_REDIS_URL"),
        (
            redis_url("unix:///run/redis?db=1", username=Secret("u"), password=Secret("p")),
            "unix://u:p@/run/redis?db=1",
            "BCS_REDIS_USERNAME and BCS_REDIS_PASSWORD",
        ),
        (
            database_url("postgresql:///db?host=/run&user=u", password=Secret("p:q")),
            "postgresql://:p%3Aq@/db?host=/run&user=u",
            "BCS_DATABASE_URL and BCS_DATABASE_PASSWORD",
        ),
    ],
)
def test_the_login_is_put_into_the_url(made: StoreUrl, url: str, login_settings: str) -> None:
    assert made.current() == url
    assert made.problem() is None
    assert made.login_settings == login_settings


def test_a_changed_login_is_used_for_the_next_connection(file: Path) -> None:
    url = redis_url(Secret.from_file(file))
    for text in ("redis://bcs:second@cache:6379/0", "redis://other:third@cache:6379/0", "redis://cache:6379/0"):
        file.write_text(text)
        assert url.current() == text
    assert url.address == "cache:6379 (BCS_REDIS_URL)"


def test_a_password_of_its_own_changes_beside_the_url(file: Path, tmp_path: Path) -> None:
    file.write_text("redis://bcs@cache")
    tmp_path.joinpath("password").write_text("first")
    url = redis_url(Secret.from_file(file), password=Secret.from_file(tmp_path / "password"))
    assert url.current() == "redis://bcs:first@cache"
    tmp_path.joinpath("password").write_text("second")
    assert url.current() == "redis://bcs:second@cache"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http://bcs:s3cret@cache:6379/0", "must begin with redis://"),
        ("redis://bcs:s3cr/et@cache:6379/0", "percent-encode"),
        ("redis://[bcs:s3cret@cache", "can't be read as a URL"),
        ("redis://bcs:s3cret@elsewhere:6379/0", "names another server"),
        ("redis://bcs:s3cret@cache:6380/0", "names another server"),
        ("redis://bcs:s3cret@cache:6379/1", "names another server"),
        ("rediss://bcs:s3cret@cache:6379/0", "names another server"),
    ],
)
def test_a_changed_url_that_can_t_be_used_leaves_the_one_before_and_is_logged_once(
    file: Path, text: str, problem: str
) -> None:
    first = file.read_text()
    url = redis_url(Secret.from_file(file))
    file.write_text(text)
    with capture_logs() as logs:
        assert [url.current() for _ in range(3)] == [first] * 3
    [line] = logs
    assert (line["event"], line["variable"]) == ("changed_url_unusable", "BCS_REDIS_URL")
    assert problem in line["problem"]
    assert "s3cr" not in str(line)
    file.write_text("redis://bcs:second@cache:6379/0")
    assert url.current() == "redis://bcs:second@cache:6379/0"


def test_what_is_not_a_login_stays_in_the_url_of_a_database(file: Path) -> None:
    file.write_text("postgresql://db/bcs?user=u&password=first&sslmode=require")
    url = database_url(Secret.from_file(file))
    file.write_text("postgresql://db/bcs?sslmode=require&user=u&password=second")
    assert url.current().endswith("second")
    file.write_text("postgresql://db/bcs?sslmode=disable&user=u&password=third")
    with capture_logs() as logs:
        assert url.current().endswith("second")
    assert [line["event"] for line in logs] == ["changed_url_unusable"]


@pytest.mark.parametrize(
    ("url", "kind", "listed", "service", "address"),
    [
        ("redis://u:s3cret@h:1/2", RedisKind.SERVER, (), "", "h:1"),
        ("unix:///run/redis", RedisKind.SERVER, (), "", "/run/redis"),
        ("rediss+cluster://u:s3cret@a:1,[::1]:2", RedisKind.CLUSTER, (("a", 1), ("::1", 2)), "", "a:1,[::1]:2"),
        ("redis+sentinel://:s3cret@a:1,b:2/m%20x", RedisKind.SENTINEL, (("a", 1), ("b", 2)), "m x", "a:1,b:2/m%20x"),
    ],
)
def test_a_url_names_its_servers(
    url: str, kind: RedisKind, listed: tuple[tuple[str, int], ...], service: str, address: str
) -> None:
    named = redis_url(url)
    assert named.servers == RedisServers(kind=kind, listed=listed, service=service)
    assert named.address == f"{address} (BCS_REDIS_URL)"


def test_each_server_of_a_list_has_a_url_of_its_own() -> None:
    secrets = {"username": Secret("ü"), "sentinel_password": Secret("s/p")}
    url = redis_url("rediss+sentinel://:p@a:1,b:2/main?db=3&ssl_check_hostname=false", **secrets)
    assert url.current() == "rediss+sentinel://%C3%BC:p@a:1,b:2/main?db=3&ssl_check_hostname=false"
    assert url.at("::1", 5).current() == "rediss://%C3%BC:p@[::1]:5?db=3&ssl_check_hostname=false"
    assert url.at("h", 5).address == "h:5 (BCS_REDIS_URL)"
    assert url.at("h", 5).login_settings == url.login_settings == "BCS_REDIS_USERNAME and BCS_REDIS_URL"
    assert url.at("h", 5).servers.kind is RedisKind.SERVER
    assert url.at_sentinel("b", 2).current() == "rediss://:s%2Fp@b:2?ssl_check_hostname=false"
    assert url.at_sentinel("b", 2).login_settings == "BCS_REDIS_SENTINEL_PASSWORD"
    assert redis_url("redis+sentinel://u:p@a:1/main").at_sentinel("a", 1).current() == "redis://a:1"


def test_a_changed_login_is_used_for_each_server_of_a_list(file: Path) -> None:
    file.write_text("redis+cluster://u:first@a:1,b:2")
    url = redis_url(Secret.from_file(file))
    node = url.at("c", 3)
    file.write_text("redis+cluster://v:second@a:1,b:2")
    assert node.current() == "redis://v:second@c:3"
    file.write_text("redis+cluster://v:s3cret@c:3,b:2")
    with capture_logs() as logs:
        for each in (node, url, url.at("d", 4)):
            assert "second" in each.current()
    [line] = logs
    assert "names another server" in line["problem"]
    assert "s3cret" not in str(line)


def test_the_sentinels_have_a_login_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    monkeypatch.setenv("BCS_REDIS_URL", "redis+sentinel://bcs:secret@a:1/main")
    monkeypatch.setenv("BCS_REDIS_SENTINEL_USERNAME", "watcher")
    monkeypatch.setenv("BCS_REDIS_SENTINEL_PASSWORD_FILE", str(file))
    url = load_settings().redis
    assert url.at_sentinel("a", 1).current() == "redis://watcher:first@a:1"
    file.write_text("second")
    assert url.at_sentinel("a", 1).current() == "redis://watcher:second@a:1"
    assert url.at_sentinel("a", 1).login_settings == "BCS_REDIS_SENTINEL_USERNAME and BCS_REDIS_SENTINEL_PASSWORD"
    assert url.at("a", 1).current() == "redis://bcs:secret@a:1"


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("redis+cluster://u:s3cret@h:1,g:1", "BCS_REDIS_PASSWORD"),
        ("redis://u:s3cret@h", "BCS_REDIS_USERNAME"),
        ("redis://u@h", "BCS_REDIS_USERNAME"),
        ("redis://:s3cret@h", "BCS_REDIS_PASSWORD"),
        ("postgresql://u:s3cret@h/db", "BCS_DATABASE_PASSWORD"),
        ("postgresql://u@h/db?password=s3cret", "BCS_DATABASE_PASSWORD"),
    ],
)
def test_a_login_in_the_url_and_beside_it_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, variable: str) -> None:
    of = "BCS_REDIS_URL" if url.startswith("redis") else "BCS_DATABASE_URL"
    monkeypatch.setenv(of, url)
    monkeypatch.setenv(variable, "s3cret-too")
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    [(named, problem)] = refusal.value.problems
    assert named == variable
    assert f"{of} has a" in problem
    assert "only one may be" in problem
    assert "s3cret" not in str(refusal.value)
