"""Addresses in the settings: an unusable address is refused at the start, without repeating it."""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path

import pytest
from aiokafka.conn import collect_hosts
from asyncpg import connect_utils

from bcs.config.addresses import ASYNCPG_OPTIONS, SERVER_SETTINGS, parse_as_asyncpg
from bcs.config.loading import load_settings, load_settings_for_health_check
from bcs.config.settings import InvalidSettings

REDIS, DATABASE, KAFKA = "BCS_REDIS_URL", "BCS_DATABASE_URL", "BCS_KAFKA_BOOTSTRAP_SERVERS"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("BCS_", "PG")):
            monkeypatch.delenv(name)


REFUSED = [
    # An option of the TLS client on a connection without TLS, and values that it does not take.
    (REDIS, "redis://:s3cret@h?ssl_cert_reqs=none", "rediss://"),
    (REDIS, "unix://:s3cret@/run/redis?ssl_cert_reqs=none", "rediss://"),
    (REDIS, "rediss://:s3cret@h?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs"),
    (REDIS, "rediss://:s3cret@h?ssl_check_hostname=no&ssl_min_version=TLSv1_2", "ssl_min_version"),
    (REDIS, "rediss://:s3cret@h?ssl_min_version=1", "ssl_min_version"),
    (REDIS, "rediss://:s3cret@h?ssl_ciphers=s3cret", "ssl_ciphers"),
    (REDIS, "rediss://:s3cret@h?ssl_include_verify_flags=s3cret", "ssl_include_verify_flags"),
    (REDIS, "rediss://:s3cret@h?ssl_ca_certs=/s3cret/ca.pem", "ssl_ca_certs: No such file"),
    (REDIS, "rediss://:s3cret@h?ssl_certfile=/s3cret/a&ssl_keyfile=/s3cret/b", "No such file"),
    (REDIS, "rediss://:s3cret@h?ssl_s3cret=1", "ssl_cert_reqs"),  # those that there are
    # Databases that are none, or two.
    (REDIS, "redis://:s3cret@h?db=s3cret", "number"),
    (REDIS, "redis://:s3cret@h?db=-1", "number"),
    (REDIS, "redis://:s3cret@h?db=", "value"),
    (REDIS, "redis://:s3cret@h?db=1&db=2", "twice"),
    (REDIS, "redis://:s3cret@h/1?db=2", "twice"),
    (REDIS, "redis://:s3cret@h/1/2", "number"),
    (REDIS, "redis://:s3cret@h/s3cret", "number"),
    # Options that would override what has settings of its own, and such as nobody knows.
    (REDIS, "redis://:s3cret@h?max_connections=1", "only db and ssl_*"),
    (REDIS, "redis://:s3cret@h?s3cret", "percent-encode"),
    # A password with a character that ends it: the rest would be host, port, path, option or nothing.
    (REDIS, "redis://:s3cr#et@h:6379/0", "%23"),
    (REDIS, "redis://:s3cr/et@h:6379/0", "percent-encode"),
    (REDIS, "redis://:12/34@h", "host"),
    (REDIS, "redis://:s3cr?et@h:6379/0", "percent-encode"),
    (REDIS, "redis://:s3cr?e=t@h:6379/0", "percent-encode"),
    (REDIS, "redis://:s3[cret@h:6379/0", "percent-encode"),
    (REDIS, "redis://:s3 cret@h:6379/0", "spaces"),
    (REDIS, "redis://:s3\ncret@h:6379/0", "spaces"),
    (REDIS, "redis://:s3%cret@h:6379/0", "%25"),
    (REDIS, "redis://:s3cret%@h:6379/0", "%25"),
    (REDIS, "redis://:s3cret%FF@h:6379/0", "UTF-8"),
    (REDIS, "redis://:s3cret\u2100@h:6379/0", "percent-encode"),  # Python's reader repeats it all in its error
    # Hosts and ports that are none.
    (REDIS, "redis://:s3cret@:6379/0", "host"),
    (REDIS, "redis://:s3cret@/0", "host"),
    (REDIS, "redis://", "host"),
    (REDIS, "redis://:s3cret@a..b", "host"),
    (REDIS, f"redis://:s3cret@{'x' * 70}", "host"),
    (REDIS, "redis://:s3cret@h:0", "port"),
    (REDIS, "redis://:s3cret@h:99999", "port"),
    (REDIS, "redis://:s3cret@h:s3cret", "port"),
    (REDIS, "redis://:s3cret@::1:6379", "port"),
    (REDIS, "redis://:s3cret@[::1:6379", "percent-encode"),
    (REDIS, "redis://:s3cret@[h]:6379", "percent-encode"),
    (REDIS, "unix://:s3cret@", "path"),
    (REDIS, "unix://s3cret/run/redis", "three slashes"),
    # What libpq and others know and asyncpg hands to the server, which refuses it.
    (DATABASE, "postgresql://u:s3cret@h/db?connect_timeout=s3cret", "only "),
    (DATABASE, "postgresql://u:s3cret@h/db?connect_timeout=10", "only "),
    (DATABASE, "postgresql://u:s3cret@h/db?connect_timeout=", "value"),
    (DATABASE, "postgresql://u:s3cret@h/db?ssl=true", "sslmode"),
    (DATABASE, "postgresql://u:s3cret@h/db?statement_timeout=1", "only "),
    (DATABASE, "postgresql://u:s3cret@h/db?sslmode", "percent-encode"),
    # What asyncpg itself refuses.
    (DATABASE, "postgresql://u:s3cret@h/db?sslmode=s3cret", "sslmode"),
    (DATABASE, "postgresql://u:s3cret@h/db?sslmode=require&sslmode=disable", "twice"),
    (DATABASE, "postgresql://u:s3cret@h/db?sslmode=require&sslcert=/s3cret/a", "sslcert: No such file"),
    (DATABASE, "postgresql://u:s3cret@h/db?sslmode=verify-full&sslrootcert=/s3cret/a", "No such file"),
    (DATABASE, "postgresql://u:s3cret@h/db?sslnegotiation=s3cret", "sslnegotiation"),
    (DATABASE, "postgresql://u:s3cret@h/db?ssl_min_protocol_version=s3cret", "ssl_min_protocol_version"),
    (DATABASE, "postgresql://u:s3cret@h/db?gsslib=s3cret", "gsslib"),
    (DATABASE, "postgresql:///db?host=a,b&port=1,2,3", "port"),
    (DATABASE, "postgresql:///db?port=s3cret", "port"),
    (DATABASE, "postgresql:///db?host=h&port=99999", "port"),
    # Several servers, where there can't be such.
    (REDIS, "redis://:s3cret@a:1,b:2", "only redis+cluster:// and redis+sentinel://"),
    (REDIS, "unix+cluster:///run/s3cret", "rediss+cluster://"),
    (REDIS, "redis+cluster:///run/s3cret", "host:port"),
    (REDIS, "redis+sentry://s3cret:1/s3cret", "rediss+sentinel://"),
    (REDIS, "redis+cluster://:s3cret@s3cret", "host:port"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1,s3cret", "host:port"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1,,b:2", "host:port"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1,", "host:port"),
    (REDIS, "redis+cluster://u:s3cret@a:1,u:s3cret@b:2", "login more than once"),
    (REDIS, "redis+cluster://:s3cret@", "host:port"),
    (REDIS, "redis+cluster://:s3cret@s3cret:", "host:port"),
    (REDIS, "redis+cluster://:s3cret@[::1]", "host:port"),
    (REDIS, "redis+cluster://:s3cret@::1:2", "host:port"),
    (REDIS, "redis+cluster://:s3cret@a:s3cret", "host:port"),
    (REDIS, "redis+cluster://:s3cret@a:0", "port"),
    (REDIS, "redis+cluster://:s3cret@a:1,b:65536", "port"),
    (REDIS, "redis+cluster://:s3cret@:1", "host"),
    (REDIS, "redis+cluster://:s3cret@s3..cret:1", "host"),
    (REDIS, "redis+cluster://:12/34@s3cret:1", "host"),
    (REDIS, "redis+cluster://:s3cr/et@s3cret:1", "percent-encode"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1,S3CRET:1", "twice"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1/0", "names a database"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1/s3cret", "names a database"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1?db=0", "names a database"),
    (REDIS, "redis+cluster://:s3cret@s3cret:1?ssl_cert_reqs=none", "only rediss://"),
    (REDIS, "rediss+cluster://:s3cret@s3cret:1?ssl_min_version=1", "ssl_min_version"),
    (REDIS, "rediss+sentinel://:s3cret@s3cret:1/s3?ssl_ca_certs=/s3cret/ca.pem", "ssl_ca_certs: No such file"),
    (REDIS, "redis+sentinel://:s3cret@s3cret:1", "/NAME"),
    (REDIS, "redis+sentinel://:s3cret@s3cret:1/", "/NAME"),
    (REDIS, "redis+sentinel://:s3cret@s3cret/s3cret", "host:port"),
    (REDIS, "redis+sentinel://:s3cret@s3cret:1/s3cret/12", "?db="),
    (REDIS, "redis+sentinel://:s3cret@s3cret:1/s3cret?db=s3cret", "number"),
    (DATABASE, "postgresql://u:s3cr#et@h/db", "%23"),
    (DATABASE, "postgresql://u:s3cr/et@h/db", "percent-encode"),
    (DATABASE, "postgresql://u:s3cr@et@h/db", "percent-encode"),
    (DATABASE, "postgresql://u:s3cr?et@h/db", "percent-encode"),
    (DATABASE, "postgresql://u:s3%cret@h/db", "%25"),
    (DATABASE, "postgresql://u:s3 cret@h/db", "spaces"),
    (DATABASE, "postgresql://u:s3cret\u2100@h/db", "percent-encode"),
    (DATABASE, "postgresql+asyncpg://u:s3cret@h/db", "postgresql://"),
    (DATABASE, "postgresql://u:s3cret@a,,b/db", "host"),
    (DATABASE, "postgresql://u:s3cret@:5432/db", "host"),
    (DATABASE, "postgresql://u:s3cret@a..b/db", "host"),
    (DATABASE, "postgresql://u:s3cret@h:0/db", "port"),
    (DATABASE, "postgresql://u:s3cret@a:1,b:99999/db", "port"),
    (DATABASE, "postgresql://u:s3cret@a:1,b:s3cret/db", "port"),
    (DATABASE, "postgresql://u:s3cret@[::1]x:2/db", "percent-encode"),
    (DATABASE, "postgresql://u:s3cret@[::1/db", "percent-encode"),
    # aiokafka takes a host without a port, and for the rest of these it fails while it starts, each time anew.
    (KAFKA, "s3cret", "host:port"),
    (KAFKA, "a:1,,b:2", "host:port"),
    (KAFKA, "a:1,", "host:port"),
    (KAFKA, ":9092", "host:port"),
    (KAFKA, "kafka://s3cret:9092", "host:port"),
    (KAFKA, "u:s3cret@h:9092", "host:port"),
    (KAFKA, "h:9092/s3cret", "host:port"),
    (KAFKA, "h:9092#s3cret", "host:port"),
    (KAFKA, "h:s3cret", "host:port"),
    (KAFKA, "h:0", "host:port"),
    (KAFKA, "h:65536", "host:port"),
    (KAFKA, "h:+1", "host:port"),
    (KAFKA, "::1:9092", "host:port"),
    (KAFKA, "[::1]", "host:port"),
    (KAFKA, "[s3cret]:9092", "host:port"),
    (KAFKA, "[::1]]:9092", "host:port"),
    (KAFKA, "[::1]9092", "host:port"),
    (KAFKA, "s3 cret:9092", "host:port"),
    (KAFKA, "s3..cret:9092", "host:port"),
]


@pytest.mark.parametrize(("variable", "address", "advice"), REFUSED)
def test_an_unusable_address_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str, advice: str
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    [(named, problem)] = refusal.value.problems
    assert named == variable
    assert advice in problem
    assert "\n" not in problem
    assert not any(part in str(refusal.value) for part in ("s3", "cret", "12", "34"))
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/15",
        "redis://:p%23%2F%40%3A%20%25@h",
        "redis://user:p@ss@h:6379/0",  # redis-py takes the last @ for the end of the login
        "redis://h?db=3",
        "redis://[::1]:6379/0",
        "redis://redis_1:6379/",
        "rediss://h",
        "rediss://h:6380/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        f"rediss://h?ssl_min_version={0x0303}&ssl_ciphers=ECDHE",
        "unix:///run/redis.sock?db=1",
        "unix://user:password@/run/redis.sock",
        "redis+cluster://h:6379",
        "redis+cluster://user:p%23@a:7000,b:7000,[::1]:7000/",
        "rediss+cluster://a:7000,a:7001?ssl_cert_reqs=none",
        "redis+sentinel://a:26379,b:26379,c.example.:26379/bcs-state",
        "rediss+sentinel://:p@s@a:26379/bcs%2Fstate?db=3&ssl_check_hostname=false",
        " redis://h:6379/0\n",  # as a file of a secret may end
    ],
)
def test_a_redis_url_that_the_client_takes_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(REDIS, url)
    assert load_settings().redis_url.get_secret_value() == url.strip()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h",
        "postgres://u:p%23%2F%40%3A%20%25@h:5432/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u:p@/db",
        "postgresql://u@a:1,[::1]:2,c/db?target_session_attrs=read-write",
        "postgresql://u@h/db?sslmode=require&ssl_min_protocol_version=TLSv1.3",
        "postgresql://u@h/db?search_path=bcs&application_name=me&options=-c%20work_mem%3D8MB",
        "postgresql://u@h/db\n",
    ],
)
def test_a_database_url_that_the_client_takes_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(DATABASE, url)
    database_url = load_settings().database_url
    assert database_url
    assert database_url.get_secret_value() == url.strip()


@pytest.mark.parametrize(
    ("servers", "parsed"),
    [
        ("kafka:9092", [("kafka", 9092)]),
        (" a:1 , b.example.:65535 ", [("a", 1), ("b.example.", 65535)]),
        ("127.0.0.1:9092,[::1]:9093,[fe80::1%eth0]:1", [("127.0.0.1", 9092), ("::1", 9093), ("fe80::1%eth0", 1)]),
        ("kafka_1:9092,kafka_1:9092", [("kafka_1", 9092)] * 2),
    ],
)
def test_bootstrap_servers_mean_the_same_to_the_client(
    monkeypatch: pytest.MonkeyPatch, servers: str, parsed: list[tuple[str, int]]
) -> None:
    monkeypatch.setenv(KAFKA, servers)
    taken = load_settings().kafka_bootstrap_servers
    assert [address[:2] for address in collect_hosts(taken, randomize=False)] == parsed


def test_a_variable_of_postgresql_that_asyncpg_refuses_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE, "postgresql://h/db")
    monkeypatch.setenv("PGSSLMODE", "s3cret")
    with pytest.raises(InvalidSettings, match=r"PG\*") as refusal:
        load_settings()
    assert "s3cret" not in str(refusal.value)


def test_a_health_check_needs_no_usable_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS, "redis://h?db=x")
    assert load_settings_for_health_check().redis_url


def test_asyncpg_still_has_the_parser_and_the_options_that_are_counted_on(tmp_path: Path) -> None:
    """`_parse_connect_dsn_and_args` is private: a release of asyncpg that changes it has to fail here."""
    assert {"dsn", "server_settings"} <= signature(connect_utils._parse_connect_dsn_and_args).parameters.keys()  # type: ignore[attr-defined]
    usable = {"port": "1", "sslmode": "disable", "sslnegotiation": "postgres", "gsslib": "gssapi"}
    usable |= {"target_session_attrs": "any", "service": "none"}
    options = {name: usable.get(name, "x") for name in (*ASYNCPG_OPTIONS, *SERVER_SETTINGS)}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    addresses, server_settings = parse_as_asyncpg(f"postgresql:///?{query}")
    assert addresses == [("x", 1)]
    assert set(server_settings) == set(SERVER_SETTINGS)
