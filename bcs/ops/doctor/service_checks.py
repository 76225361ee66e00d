"""Requests the health of the service on this machine, which has more details than a check from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcs.config.settings import Settings
from bcs.ops.asking import NotThisService, RequestFailed, ServiceUnreachable, ask
from bcs.ops.doctor.findings import Finding, failed, ok, warning

_CHECK = "service"
_PATH = "/healthz"
_SECONDS = 5.0


def check_service(settings: Settings) -> tuple[str | None, Finding]:
    """The URL of the service that answers on this machine, or None; and the finding about this service."""
    url = settings.local_probe_url
    if url is None:
        return None, ok(_CHECK, "not checked: BCS_HTTP_PORT or BCS_HTTP_PROBE_PORT is 0, so its port is unknown")
    try:
        health = ask(f"{url}{_PATH}", expecting=("status", "message", "dependencies"), timeout_seconds=_SECONDS)
    except ServiceUnreachable as error:
        if error.late:
            return url, failed(
                _CHECK, str(error), "check its log; a service that does not answer at all needs a restart"
            )
        return None, ok(_CHECK, f"no service answers at {url} ({error.cause})")
    except (NotThisService, RequestFailed) as error:
        return None, warning(_CHECK, str(error), "check BCS_HTTP_HOST, BCS_HTTP_PORT and BCS_HTTP_PROBE_PORT")
    return url, finding_of(url, health)


def finding_of(url: str, health: Mapping[str, Any]) -> Finding:
    """The finding from the health document of a service."""
    if health["status"] == "healthy":
        return ok(_CHECK, f"at {url}: {health['message']}")
    problems = [
        f"{name}: {dependency.get('message')}"
        for name, dependency in health["dependencies"].items()
        if dependency.get("status") in ("degraded", "unhealthy")
    ]
    problems += [f"{variable}: {problem}" for variable, problem in health.get("credentials", {}).items()]
    found = f"at {url}, {health['status']}: {'; '.join([health['message'], *problems])}"
    return failed(_CHECK, found, f"remove the cause; {url}{_PATH} and its log have more")
