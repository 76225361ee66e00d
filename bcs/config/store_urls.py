"""The URLs of the stores, whose logins may change while the process runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pydantic import SecretStr

from bcs.config.addresses import database_address, database_problem, redis_address, redis_problem
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


class StoreUrl:
    """The URL of a store. Its secrets are read again for each new connection.

    Only the login may change while the process runs, and the password of a private key. A changed URL that names
    another server is not used: that server has other data, and must not get the password by mistake.

    :param url: the URL, with or without a login.
    :param username: the user that is not in the URL.
    :param password: the password that is not in the URL.
    """

    def __init__(
        self, store: _Store, url: Secret, *, username: Secret | None = None, password: Secret | None = None
    ) -> None:
        self._store = store
        self._url = url
        self._username = username
        self._password = password
        text = url.get_secret_value()
        self._used = SecretStr(text)
        self._place = _place(text)
        self._logged = ""
        self.variable = f"{store.prefix}_URL"

    @property
    def address(self) -> str:
        """The address without the login, with the name of its setting."""
        return self._store.address_of(self._used.get_secret_value())

    @property
    def login_settings(self) -> str:
        """The settings that have the user and the password."""
        user, _ = _login_in(self._used.get_secret_value())
        names = [f"{self._store.prefix}_USERNAME"] if self._username else [self.variable] if user else []
        names.append(f"{self._store.prefix}_PASSWORD" if self._password else self.variable)
        return " and ".join(dict.fromkeys(names))

    def without_user(self, text: str) -> str:
        """A text of PostgreSQL without the name of the user."""
        user, _ = _login_in(self._used.get_secret_value())
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
            self._used = SecretStr(text)
        elif problem != self._logged:
            from bcs.config.secret_log import warn_of_url

            warn_of_url(self.variable, problem)
        self._logged = problem
        return self._with_login(self._used.get_secret_value())

    def problem(self) -> str | None:
        """Why the client can't use the current URL, such as a missing certificate; None if it can."""
        return self._store.problem_of(self.current())

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with the settings: for each problem the variable, and the problem."""
        return self._problems_of(self._url.get_secret_value())

    def _problem_of_change(self, text: str) -> str:
        if text == self._used.get_secret_value():
            return ""
        for _, problem in self._problems_of(text):
            return problem
        return "" if _place(text) == self._place else _ANOTHER_SERVER

    def _problems_of(self, text: str) -> list[tuple[str, str]]:
        if problem := self._store.problem_of(text):
            return [(self.variable, problem)]
        user, password = _login_in(text)
        parts = (("USERNAME", "user", self._username, user), ("PASSWORD", "password", self._password, password))
        return [
            (f"{self._store.prefix}_{name}", f"is set, and {self.variable} has a {part} as well; only one may be")
            for name, part, given, in_url in parts
            if given and in_url
        ]

    def _with_login(self, text: str) -> str:
        if self._username is None and self._password is None:
            return text
        parts = urlsplit(text)
        login, _, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        if self._username:
            user = quote(self._username.get_secret_value(), safe="")
        if self._password:
            password = quote(self._password.get_secret_value(), safe="")
        return parts._replace(netloc=f"{user}:{password}@{hosts}").geturl()


def redis_url(url: Secret | str, *, username: Secret | None = None, password: Secret | None = None) -> StoreUrl:
    """The URL of Redis.

    :param url: a text does not change.
    """
    return StoreUrl(_REDIS, _secret(url), username=username, password=password)


def database_url(url: Secret | str, *, password: Secret | None = None) -> StoreUrl:
    """The URL of PostgreSQL.

    :param url: a text does not change.
    """
    return StoreUrl(_DATABASE, _secret(url), password=password)


def _secret(text: Secret | str) -> Secret:
    return Secret(text) if isinstance(text, str) else text


def _login_in(url: str) -> tuple[str, str]:
    """The user and the password in a URL, as they are written there."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    options = dict(parse_qsl(parts.query))
    return user or options.get("user", ""), password or options.get("password", "")


def _place(url: str) -> str:
    """The URL without what may change."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    options = [option for option in parse_qsl(parts.query) if option[0] not in _LOGIN_OPTIONS]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options)).geturl()
