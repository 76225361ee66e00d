"""Checks whether the clients can use the addresses in the settings, without a connection.

No problem repeats a part of an address, because a part that looks like a port or an option may be half a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from inspect import signature
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from bcs.config.files import read_regular_file
from bcs.config.redis_servers import (
    LARGEST_PORT,
    NO_HOST,
    NO_PORT,
    PERCENT_ENCODE,
    SCHEMES,
    RedisKind,
    is_host,
    is_port,
    kind_of,
    listing_problem,
    servers_in,
    url_of_one,
)

ASYNCPG_OPTIONS = (
    *("host", "port", "user", "password", "passfile", "dbname", "database", "service"),
    *("sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
)
"""The options of a URL that asyncpg uses. asyncpg sends every other option to the server as a setting."""

SERVER_SETTINGS = ("application_name", "options", "search_path")
"""The options that may be sent to the server. It would refuse libpq's options; others have their own BCS settings."""

_UNREADABLE = f"can't be read as a URL; {PERCENT_ENCODE}"
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_HOST = r"\[(?P<v6>[^\[\]\s]+)\]|(?P<name>[^\s:/?#@\[\]]*)"
_SERVER = re.compile(rf"(?:{_HOST}):(?P<port>[0-9]{{1,5}})")
_SERVER_OR_HOST = re.compile(rf"(?:{_HOST})(?::(?P<port>[0-9]*))?")

_FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sslrootcert", "sslcert", "sslkey", "sslcrl"})
# The valid values of an option that a client refuses. The client's own text would repeat the invalid value.
_VALUES = {
    "ssl_cert_reqs": "one of none, optional, required",
    "ssl_min_version": "a number as Python's ssl.TLSVersion has it, such as 771 for TLS 1.2",
    "sslmode": "one of disable, allow, prefer, require, verify-ca, verify-full; the last two need sslrootcert",
    "sslnegotiation": "one of postgres, direct; direct needs an sslmode from require on",
    "ssl_min_protocol_version": "such as TLSv1.2",
    "ssl_max_protocol_version": "such as TLSv1.3",
    "gsslib": "one of gssapi, sspi",
    "target_session_attrs": "such as read-write",
}


def redis_problem(url: str) -> str | None:
    """What is wrong with a Redis URL; None where redis-py can use it."""
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return (
            "must begin with redis://, rediss:// or unix://, or with redis+cluster://, rediss+cluster://, "
            "redis+sentinel:// or rediss+sentinel://"
        )
    problem, parts, options = _split(url)
    if parts is None:
        return problem
    names = [name for name, _ in options]
    if any(name != "db" and not name.startswith("ssl_") for name in names):
        # Other options would override deadlines and limits that have their own settings.
        return f"only db and ssl_* are allowed after the question mark; {PERCENT_ENCODE}"
    if names != ["db"] * len(names) and not parts.scheme.startswith("rediss"):
        return "only rediss:// connections have ssl_* options"
    one = kind_of(parts.scheme) is RedisKind.SERVER
    if server_problem := _redis_host_problem(parts) if one else listing_problem(parts, names):
        return server_problem
    database = parts.path.strip("/") if one and parts.scheme != "unix" else ""
    if database and "db" in names:
        return "has the database twice"
    if any(text and not text.isdecimal() for text in (database, dict(options).get("db", ""))):
        return "the database must be a number"
    return _redis_client_problem(url, names)


def _redis_host_problem(parts: SplitResult) -> str | None:
    if parts.scheme == "unix":
        if parts.hostname:
            return "must have three slashes before the path of a socket: unix:///"
        return None if parts.path.strip("/") else "has no path of a socket"
    if "," in _host_in(parts.netloc):
        return "has several servers, which only redis+cluster:// and redis+sentinel:// may have"
    try:
        port = parts.port
    except ValueError:
        port = 0
    # redis-py treats 0 as a missing port.
    if port is not None and not 1 <= port <= LARGEST_PORT:
        return NO_PORT
    return None if is_host(unquote(parts.hostname or "")) else NO_HOST


def _redis_client_problem(url: str, options: list[str]) -> str | None:
    from redis.asyncio import ConnectionPool
    from redis.asyncio.connection import SSLConnection

    known = [name for name in signature(SSLConnection).parameters if name.startswith("ssl_")]
    if not {"db", *known}.issuperset(options):
        return f"has an unknown ssl_ option; redis-py has {', '.join(known)}"

    def use(url: str) -> None:
        listed = servers_in(url).listed
        one = url_of_one(url, *listed[0]) if listed else url
        connection = ConnectionPool.from_url(one).make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()  # the first attempt to connect does the same

    return _refusal("redis-py", url, options, use)


def database_problem(url: str) -> str | None:
    """What is wrong with a PostgreSQL URL; None where asyncpg can use it, or is not installed."""
    if not url.startswith(("postgresql://", "postgres://")):
        return "must begin with postgresql:// or postgres://"
    problem, parts, options = _split(url)
    if parts is None:
        return problem
    names = [name for name, _ in options]
    allowed = (*ASYNCPG_OPTIONS, *SERVER_SETTINGS)
    if not set(allowed).issuperset(names):
        return f"only {', '.join(allowed)} are allowed after the question mark; {PERCENT_ENCODE}"
    login, _, hosts = parts.netloc.rpartition("@")
    if "@" in login:
        return _UNREADABLE  # for asyncpg the first @ ends the login
    # A URL may have several hosts, for servers that take over from each other.
    for host in hosts.split(",") if hosts else ():
        match = _SERVER_OR_HOST.fullmatch(host)
        if match is None:
            return NO_PORT if "[" not in host else _UNREADABLE
        if not is_host(match["v6"] or unquote(match["name"])):
            return NO_HOST
        if match["port"] and not is_port(match["port"]):
            return NO_PORT
    return _database_client_problem(url, names) if find_spec("asyncpg") else None


def _database_client_problem(url: str, options: list[str]) -> str | None:
    def use(url: str) -> None:
        addresses, _ = parse_as_asyncpg(url)
        for address in addresses:
            if isinstance(address, tuple) and not 1 <= address[1] <= LARGEST_PORT:
                raise ValueError("not a port")

    variables = ", or a PG* variable of this process" if any(name.startswith("PG") for name in os.environ) else ""
    return _refusal("asyncpg", url, options, use, variables)


def parse_as_asyncpg(url: str) -> tuple[list[str | tuple[str, int]], Mapping[str, str]]:
    """Parse a URL as asyncpg does, with its environment variables: addresses, and settings for the server.

    :raises Exception: an error of any kind, where asyncpg can't use the URL.
    """
    # asyncpg has no public function that only parses. A test fails when a release changes this one.
    from asyncpg.connect_utils import _parse_connect_dsn_and_args as parse  # type: ignore[attr-defined]

    addresses, parameters = parse(**{**dict.fromkeys(signature(parse).parameters), "dsn": url})
    return addresses, parameters.server_settings or {}


def redis_address(url: str) -> str:
    """The address of a Redis URL without login and password, with the name of its setting."""
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else _host_in(parts.netloc)
    if kind_of(parts.scheme) is RedisKind.SENTINEL:
        place += parts.path
    return f"{place} (BCS_REDIS_URL)"


def database_address(url: str) -> str:
    """The address of a PostgreSQL URL without login and password, with the name of its setting."""
    parts = urlsplit(url)
    host = _host_in(parts.netloc) or dict(parse_qsl(parts.query)).get("host") or "the default host"
    return f"{host}{parts.path} (BCS_DATABASE_URL)"


def _host_in(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def bootstrap_servers_problem(servers: str) -> str | None:
    """What is wrong with the addresses of Kafka's brokers; None where aiokafka can use them."""
    for server in servers.split(","):
        match = _SERVER.fullmatch(server.strip())
        if match is None or not is_port(match["port"]) or not is_host(match["v6"] or match["name"]):
            return "must be host:port, several separated by commas"
        if match["v6"] and not _is_ipv6(match["v6"]):
            return "must be host:port, with an IPv6 address in brackets"
    return None


def _split(url: str) -> tuple[str, SplitResult | None, list[tuple[str, str]]]:
    """Split a URL into its parts and options.

    :returns: the problem, or an empty text; the parts, which are None with a problem; the options.
    """
    if not url.isprintable() or " " in url:
        return "has spaces or control characters; " + PERCENT_ENCODE, None, []
    if "#" in url:
        return "has a #, and clients ignore what follows it; write %23 for it", None, []
    if _BAD_ESCAPE.search(url):
        return "has a % without two hexadecimal digits after it; write %25 for it", None, []
    try:
        unquote(url, errors="strict")
    except UnicodeDecodeError:
        return "has percent-encoded bytes that are not UTF-8", None, []
    try:
        parts = urlsplit(url)
        blank = any(option.endswith("=") for option in parts.query.split("&"))
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return _UNREADABLE, None, []
    if blank:
        return "has an option without a value", None, []
    if len(dict(options)) < len(options):
        return "has an option twice", None, []
    return "", parts, options


def _refusal(client: str, url: str, options: list[str], use: Callable[[str], None], variables: str = "") -> str | None:
    """Which options a client refuses, without the client's own text, which could repeat their values.

    :param variables: an addition to the options: other possible causes.
    """
    # The files are looked at before the client reads them, which would wait for a pipe.
    for name, path in files_in(url).items():
        if unreadable := _failure(_read, path):
            return f"{client} can't use {name}{unreadable}"
    problem = _failure(use, url)
    if problem is None:
        return None
    if not options:
        return f"{client} can't use the URL{variables}{problem}"
    refused = [name for name in options if _failure(use, _without(url, name)) is None] or options
    values = [f"; {name} is {_VALUES[name]}" for name in refused if name in _VALUES]
    return f"{client} can't use {', '.join(refused)}{variables}{problem}{''.join(values)}"


def _failure(use: Callable[[str], None], url: str) -> str | None:
    try:
        use(url)
    except OSError as error:  # a file, or TLS
        return f": {error.strerror}" if error.strerror else ""
    except Exception:  # noqa: BLE001 (clients raise many kinds of errors for unexpected values)
        return ""
    return None


def files_in(url: str) -> dict[str, str]:
    """The files of certificates and keys in a URL: the name of the option to the path."""
    return {name: path for name, path in parse_qsl(urlsplit(url).query) if name in _FILES}


def _read(path: str) -> None:
    read_regular_file(Path(path), 1)


def _without(url: str, name: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode([option for option in parse_qsl(parts.query) if option[0] != name])).geturl()


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
