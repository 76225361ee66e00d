"""The URLs of the stores, whose logins may change while the process runs."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pydantic import SecretStr

from bcs.config.addresses import database_address, database_problem, redis_address, redis_problem
from bcs.config.redis_servers import RedisServers, servers_in, url_of_one
from bcs.config.secrets import Secret

_LOGIN_OPTIONS = frozenset({"user", "password", "sslpassword", "ssl_password"})
_ANOTHER_SERVER = "names another server, database or option, which needs a restart"


@dataclass(frozen=True, slots=True)
class _Store:
    """What differs between the stores.

    :param prefix: of the names of the settings.
    :param problem_of: returns what is wrong with a URL; None if nothing is.
    :param address_of: returns the address in a URL, without the login.
    """

    prefix: str
    problem_of: Callable[[str], str | None]
    address_of: Callable[[str], str]


_REDIS = _Store("BCS_REDIS", redis_problem, redis_address)
_DATABASE = _Store("BCS_DATABASE", database_problem, database_address)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Login:
    """A login beside a URL.

    :param prefix: of the names of its settings.
    """

    prefix: str
    username: Secret | None = None
    password: Secret | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Known:
    """What is remembered of a URL: the text that was used last, and the problem that was logged last."""

    used: SecretStr
    logged: str = ""


class StoreUrl:
    """The URL of a store. Its secrets are read again for each new connection.

    Only the login may change while the process runs, and the password of a private key. A changed URL that names
    another server is not used: that server has other data, and must not get the password by mistake.

    :param url: the URL, with or without a login.
    :param login: the user and the password that are not in the URL.
    :param sentinel_login: those of the Sentinels, which are not in the URL.
    """

    def __init__(self, store: _Store, url: Secret, *, login: _Login, sentinel_login: _Login | None = None) -> None:
        self._store = store
        self._url = url
        self._login = login
        self._sentinel_login = sentinel_login or _Login(prefix=f"{store.prefix}_SENTINEL")
        text = url.get_secret_value()
        self._known = _Known(SecretStr(text))
        self._place = _place(text)
        self._one: tuple[str, int] | None = None
        self._is_sentinel = False
        self.variable = f"{store.prefix}_URL"

    @property
    def address(self) -> str:
        """The address without the login, with the name of its setting."""
        return self._store.address_of(self._of_one(self._used))

    @property
    def family(self) -> object:
        """What this URL has in common with those that `at` and `at_sentinel` make of it, and with no other."""
        return self._known

    @property
    def servers(self) -> RedisServers:
        """The servers that a URL of Redis names. They do not change."""
        return servers_in(self._of_one(self._used))

    @property
    def login_settings(self) -> str:
        """The settings that have the user and the password."""
        if self._is_sentinel:
            login, user, elsewhere = self._sentinel_login, "", f"{self._sentinel_login.prefix}_PASSWORD"
        else:
            login, (user, _), elsewhere = self._login, _login_in(self._used), self.variable
        names = [f"{login.prefix}_USERNAME"] if login.username else [self.variable] if user else []
        names.append(f"{login.prefix}_PASSWORD" if login.password else elsewhere)
        return " and ".join(dict.fromkeys(names))

    def at(self, host: str, port: int) -> StoreUrl:
        """The URL of one server of a Redis Cluster, or of the master that Sentinels name.

        It has the login, the TLS and the options of this URL, also after a change of the login.
        """
        one = copy(self)
        one._one = host, port
        return one

    def at_sentinel(self, host: str, port: int) -> StoreUrl:
        """The URL of a Sentinel: it has the TLS of this URL, and the login of the Sentinels."""
        one = self.at(host, port)
        one._is_sentinel = True
        return one

    def without_user(self, text: str) -> str:
        """A text of PostgreSQL without the name of the user."""
        user, _ = _login_in(self._used)
        for kind in ("user", "role"):
            text = text.replace(f'{kind} "{unquote(user)}"', f"this {kind}") if user else text
        return text

    def current(self) -> str:
        """The URL with the login for the next connection. Use it at once, and do not keep it.

        While the URL in a file can't be used, the URL before is returned, and the reason is logged once.
        """
        text = self._url.get_secret_value()
        problem = self._problem_of_change(text)
        if not problem:
            self._known.used = SecretStr(text)
        elif problem != self._known.logged:
            from bcs.config.secret_log import warn_of_url

            warn_of_url(self.variable, problem)
        self._known.logged = problem
        return self._with_login(self._of_one(self._used))

    def problem(self) -> str | None:
        """Why the client can't use the current URL, such as a missing certificate; None if it can."""
        return self._store.problem_of(self.current())

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with the settings: for each problem the variable, and the problem."""
        return self._problems_of(self._url.get_secret_value())

    @property
    def _used(self) -> str:
        return self._known.used.get_secret_value()

    def _problem_of_change(self, text: str) -> str:
        if text == self._used:
            return ""
        for _, problem in self._problems_of(text):
            return problem
        return "" if _place(text) == self._place else _ANOTHER_SERVER

    def _problems_of(self, text: str) -> list[tuple[str, str]]:
        if problem := self._store.problem_of(text):
            return [(self.variable, problem)]
        user, password = _login_in(text)
        given = self._login
        parts = (("USERNAME", "user", given.username, user), ("PASSWORD", "password", given.password, password))
        return [
            (f"{given.prefix}_{name}", f"is set, and {self.variable} has a {part} as well; only one may be")
            for name, part, beside, in_url in parts
            if beside and in_url
        ]

    def _of_one(self, text: str) -> str:
        if self._one is None:
            return text
        text = url_of_one(text, *self._one)
        return _without_login(text) if self._is_sentinel else text

    def _with_login(self, text: str) -> str:
        given = self._sentinel_login if self._is_sentinel else self._login
        if given.username is None and given.password is None:
            return text
        parts = urlsplit(text)
        login, _, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        if given.username:
            user = quote(given.username.get_secret_value(), safe="")
        if given.password:
            password = quote(given.password.get_secret_value(), safe="")
        return parts._replace(netloc=f"{user}:{password}@{hosts}").geturl()


def redis_url(
    url: Secret | str,
    *,
    username: Secret | None = None,
    password: Secret | None = None,
    sentinel_username: Secret | None = None,
    sentinel_password: Secret | None = None,
) -> StoreUrl:
    """The URL of Redis.

    :param url: a text does not change.
    """
    login = _Login(prefix=_REDIS.prefix, username=username, password=password)
    of_sentinels = _Login(prefix=f"{_REDIS.prefix}_SENTINEL", username=sentinel_username, password=sentinel_password)
    return StoreUrl(_REDIS, _secret(url), login=login, sentinel_login=of_sentinels)


def database_url(url: Secret | str, *, password: Secret | None = None) -> StoreUrl:
    """The URL of PostgreSQL.

    :param url: a text does not change.
    """
    return StoreUrl(_DATABASE, _secret(url), login=_Login(prefix=_DATABASE.prefix, password=password))


def _secret(text: Secret | str) -> Secret:
    return Secret(text) if isinstance(text, str) else text


def _login_in(url: str) -> tuple[str, str]:
    """The user and the password in a URL, as they are written there."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    options = dict(parse_qsl(parts.query))
    return user or options.get("user", ""), password or options.get("password", "")


def _without_login(url: str) -> str:
    """A URL for a server that has neither this login nor databases."""
    parts = urlsplit(url)
    options = [option for option in parse_qsl(parts.query) if option[0] != "db"]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options)).geturl()


def _place(url: str) -> str:
    """The URL without what may change."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    options = [option for option in parse_qsl(parts.query) if option[0] not in _LOGIN_OPTIONS]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options)).geturl()
