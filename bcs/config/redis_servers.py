"""Which servers a Redis URL names: one server, some nodes of a Redis Cluster, or Sentinels. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import SplitResult, quote, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")

PERCENT_ENCODE = "percent-encode special characters in a name or a password"
NO_HOST = "has no host, or a host with an invalid name"
NO_PORT = f"has a port that is not a number from 1 to 65535; {PERCENT_ENCODE}"

LARGEST_PORT = 65_535
_NOT_LISTED = f"must name each server as host:port, several separated by commas; {PERCENT_ENCODE}"
_LOGIN_TWICE = "has the login more than once; write it once, before the first server, and an @ in a password as %40"
# A server after a login, before the last login: some clients take a login for each server.
_SERVER_BEFORE_LOGIN = re.compile(r"@[^@,]+:[0-9]{1,5},")
_SERVER = re.compile(r"(?:\[(?P<v6>[^\[\]\s]+)\]|(?P<name>[^\s:/?#@\[\]]*)):(?P<port>[0-9]{1,5})")


class RedisKind(StrEnum):
    """What the servers in a URL are."""

    SERVER = "server"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServers:
    """The servers that a URL names.

    :param listed: host and port of some nodes of a cluster, or of Sentinels; empty where the URL names one server.
    :param service: the name that the Sentinels have for the master; empty without Sentinels.
    """

    kind: RedisKind
    listed: tuple[tuple[str, int], ...] = ()
    service: str = ""


def servers_in(url: str) -> RedisServers:
    """The servers that a URL names, which has to be valid."""
    parts = urlsplit(url)
    kind = kind_of(parts.scheme)
    if kind is RedisKind.SERVER:
        return RedisServers(kind=kind)
    matches = [match for text in _texts(parts) if (match := _SERVER.fullmatch(text))]
    listed = tuple((_host(match), int(match["port"])) for match in matches)
    service = unquote(parts.path.strip("/")) if kind is RedisKind.SENTINEL else ""
    return RedisServers(kind=kind, listed=listed, service=service)


def kind_of(scheme: str) -> RedisKind:
    """What the servers in a URL with a scheme are."""
    return RedisKind(scheme.partition("+")[2] or RedisKind.SERVER)


def listing_problem(parts: SplitResult, options: Sequence[str]) -> str | None:
    """What is wrong with a URL of several servers, except with the values of its options.

    No problem repeats a part of the URL, see `bcs.config.addresses`.

    :param options: the names of the options.
    """
    if _SERVER_BEFORE_LOGIN.search(parts.netloc.rpartition("@")[0]):
        return _LOGIN_TWICE
    seen = set()
    for text in _texts(parts):
        match = _SERVER.fullmatch(text)
        if match is None:
            return _NOT_LISTED
        if not is_host(_host(match)):
            return NO_HOST
        if not is_port(match["port"]):
            return NO_PORT
        server = _host(match).lower(), int(match["port"])
        if server in seen:
            return "names a server twice"
        seen.add(server)
    after = parts.path.strip("/")
    if kind_of(parts.scheme) is RedisKind.CLUSTER:
        if after or "db" in options:
            return "names a database, and BCS uses the only one that every Redis Cluster has; leave it out"
    elif not after:
        return "needs the name that the Sentinels have for the master, as in /NAME after the last Sentinel"
    elif "/" in after:
        return f"only one name may follow the Sentinels; write the number of a database as ?db=; {PERCENT_ENCODE}"
    return None


def url_of_one(url: str, host: str, port: int) -> str:
    """The URL of one server, with the login, the TLS and the options of a URL of several."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    server = f"[{host}]:{port}" if ":" in host else f"{quote(host)}:{port}"
    return parts._replace(scheme=parts.scheme.partition("+")[0], netloc=f"{login}{at}{server}", path="").geturl()


def is_host(name: str) -> bool:
    """True if Python can look up the name; for some names it can't encode the query."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def is_port(text: str) -> bool:
    """True if digits are the number of a port."""
    return 1 <= int(text) <= LARGEST_PORT


def _texts(parts: SplitResult) -> list[str]:
    return parts.netloc.rpartition("@")[2].split(",")


def _host(match: re.Match[str]) -> str:
    return match["v6"] or unquote(match["name"])
