"""Findings about the settings and the environment. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bcs.config.settings import Environment, InvalidSettings, Settings
from bcs.config.unknown import UnknownVariable
from bcs.http.access import CALLERS_UNKNOWN, callers_of
from bcs.http.tls import tls_of
from bcs.ops.doctor.findings import Finding, failed, warning


def unknown(variables: Iterable[UnknownVariable]) -> list[Finding]:
    """Reports variables without effect. A name that is similar to a setting is probably misspelt.

    :param variables: the variables that begin with `BCS_` and are not settings.
    """
    return [
        failed("settings", variable.problem, f"rename it to {variable.near}, or remove it")
        if variable.near
        else warning("settings", variable.problem, "remove it, or find the right name in docs/settings.md")
        for variable in variables
    ]


def for_drills_only(settings: Settings) -> list[Finding]:
    """Reports settings that must not be used in production."""
    if settings.environment is not Environment.PRODUCTION:
        return []
    findings = []
    if settings.chaos_enabled:
        who = "every caller with the scope `operate`" if settings.knows_callers else "every HTTP client of the service"
        found = f"BCS_CHAOS_ENABLED is on in production: {who} can kill its actors"
        findings.append(failed("settings", found, "unset BCS_CHAOS_ENABLED, and set it for the time of a drill only"))
    if settings.use_mock_repository:
        found = "BCS_USE_MOCK_REPOSITORY is on in production: a restart loses all batches and the outbox"
        findings.append(failed("settings", found, "unset BCS_USE_MOCK_REPOSITORY, and set BCS_REDIS_URL"))
    return findings


def callers(settings: Settings) -> list[Finding]:
    """Reports a service in production that does not ask who its callers are, and files that can't be used."""
    findings = []
    if settings.environment is Environment.PRODUCTION and not settings.knows_callers:
        fix = "set BCS_HTTP_TOKENS_FILE, see docs/http-api.md"
        findings.append(warning("settings", CALLERS_UNKNOWN, fix))
    for load in (callers_of, tls_of):
        try:
            loaded = load(settings)
        except InvalidSettings as error:
            findings += [
                failed("settings", f"{variable}: {problem}", f"correct {variable}")
                for variable, problem in error.problems
            ]
        else:
            if loaded is not None and (problem := loaded.problem_in_use()):
                findings.append(failed("settings", f"{loaded.variable}: {problem}", "renew the certificate"))
    return findings
