"""Loads the settings of a process, and says what is wrong with them, all of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bcs.config.addresses import bootstrap_servers_problem
from bcs.config.secrets import SECRETS_DIRECTORY
from bcs.config.settings import DAY_SECONDS, HANG_FACTOR, CommandSettings, InvalidSettings, Settings
from bcs.errors import os_reason


def load_settings(**overrides: object) -> Settings:
    """The settings of this process.

    :param overrides: values that replace those of the environment.
    :raises InvalidSettings: with every invalid variable.
    """
    return _load(overrides, check_addresses=True)


def load_settings_for_health_check() -> Settings:
    """The settings of this process, without a check of the addresses, which would import the clients.

    :raises InvalidSettings: with every invalid variable.
    """
    return _load({}, check_addresses=False)


def _load(overrides: Mapping[str, Any], *, check_addresses: bool) -> Settings:
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise _invalid(error) from None
    except ValueError as error:  # pydantic-settings could not parse a value at all
        raise InvalidSettings((("BCS_*", str(error)),)) from None
    problems = []
    if settings.request_deadline_seconds >= settings.http_timeout:
        problems.append(
            ("BCS_REQUEST_DEADLINE_SECONDS", "must be below BCS_HTTP_TIMEOUT, or callers give up before the answer")
        )
    if settings.redis_deadline_seconds >= settings.request_deadline_seconds:
        problems.append(
            (
                "BCS_REDIS_DEADLINE_SECONDS",
                "must be below BCS_REQUEST_DEADLINE_SECONDS, or the reason is never returned",
            )
        )
    if settings.kafka_heartbeat_interval_seconds * 2 > settings.kafka_session_timeout_seconds:
        problems.append(
            ("BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS", "must be at most half of BCS_KAFKA_SESSION_TIMEOUT_SECONDS")
        )
    if settings.hang_seconds < HANG_FACTOR * settings.kafka_request_timeout_seconds:
        problems.append(
            (
                "BCS_HANG_SECONDS",
                "must be at least 2.5 times BCS_KAFKA_REQUEST_TIMEOUT_SECONDS, or an actor that waits looks hung",
            )
        )
    problems += _tls_problems(settings)
    if settings.restart_backoff_initial_seconds > settings.restart_backoff_maximum_seconds:
        problems.append(
            ("BCS_RESTART_BACKOFF_INITIAL_SECONDS", "must not be above BCS_RESTART_BACKOFF_MAXIMUM_SECONDS")
        )
    if check_addresses:
        problems += [*_address_problems(settings), *settings.kafka_security.problems()]
    if settings.database_url is not None:
        if settings.archive_retention_days * DAY_SECONDS <= settings.redis_ttl_seconds + DAY_SECONDS:
            problems.append(
                (
                    "BCS_ARCHIVE_RETENTION_DAYS",
                    "must be over a day more than BCS_REDIS_TTL_SECONDS, or the archive deletes what Redis still uses",
                )
            )
        if settings.database_deadline_seconds >= settings.request_deadline_seconds:
            problems.append(
                (
                    "BCS_DATABASE_DEADLINE_SECONDS",
                    "must be below BCS_REQUEST_DEADLINE_SECONDS, or the reason is never returned",
                )
            )
    if problems:
        raise InvalidSettings(tuple(problems))
    return settings


def _tls_problems(settings: Settings) -> list[tuple[str, str]]:
    problems = []
    if settings.http_tls_certfile is None:
        for variable, value in (
            ("BCS_HTTP_TLS_KEYFILE", settings.http_tls_keyfile),
            ("BCS_HTTP_TLS_KEY_PASSWORD", settings.http_tls_key_password),
            ("BCS_HTTP_TLS_CLIENT_CAFILE", settings.http_tls_client_cafile),
        ):
            if value is not None:
                problems.append((variable, "needs BCS_HTTP_TLS_CERTFILE"))
    elif settings.http_tls_client_cafile is not None and settings.http_tokens_file is None:
        problems.append(
            ("BCS_HTTP_TLS_CLIENT_CAFILE", "needs BCS_HTTP_TOKENS_FILE, which says what each certificate may do")
        )
    if settings.http_probe_port and settings.http_probe_port == settings.http_port:
        problems.append(("BCS_HTTP_PROBE_PORT", "must not be BCS_HTTP_PORT"))
    return problems


def load_command_settings() -> CommandSettings:
    """What commands need that send requests; the other settings may be invalid.

    :raises InvalidSettings: with every invalid variable.
    """
    try:
        return CommandSettings()
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidSettings:
    return InvalidSettings(
        tuple(
            (_variable(problem["loc"]), str(problem["msg"]))
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
            # The default depends on another invalid setting, which is reported itself.
            if problem["type"] != "default_factory_not_called"
        )
    )


def _address_problems(settings: Settings) -> list[tuple[str, str]]:
    problems = []
    if problem := bootstrap_servers_problem(settings.kafka_bootstrap_servers):
        problems.append(("BCS_KAFKA_BOOTSTRAP_SERVERS", problem))
    for store in (settings.redis, settings.database):
        problems += store.problems() if store else []
    if settings.secrets_dir is not None:
        try:
            list(settings.secrets_dir.iterdir())
        except OSError as error:
            problems.append((SECRETS_DIRECTORY, f"can't be read: {os_reason(error)}"))
    return problems


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "*"
    return name.upper() if name.upper().startswith("BCS_") else f"BCS_{name.upper()}"
