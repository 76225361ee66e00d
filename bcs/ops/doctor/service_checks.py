"""Asks the service on this machine for its health, because the service knows more than a check from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcs.config.settings import Settings
from bcs.ops.asking import NotThisService, RequestFailed, ServiceUnreachable, ask
from bcs.ops.doctor.findings import Finding, failed, ok, warning

_CHECK = "service"
_PATH = "/healthz"
_SECONDS = 5.0


def look_at_service(settings: Settings) -> tuple[str | None, Finding]:
    """The URL of the service that answers on this machine, or None; and the finding about this service."""
    url = settings.local_url
    if url is None:
        return None, ok(_CHECK, "not looked at: BCS_HTTP_PORT is 0, so its port is not known")
    try:
        health = ask(f"{url}{_PATH}", expecting=("status", "message", "dependencies"), timeout_seconds=_SECONDS)
    except ServiceUnreachable as error:
        if error.late:
            return url, failed(_CHECK, str(error), "see to its log; what does not answer at all needs a restart")
        return None, ok(_CHECK, f"none answers at {url} ({error.cause})")
    except (NotThisService, RequestFailed) as error:
        return None, warning(_CHECK, str(error), "see to BCS_HTTP_HOST and BCS_HTTP_PORT")
    return url, judged(url, health)


def judged(url: str, health: Mapping[str, Any]) -> Finding:
    """Judges the health document of a service."""
    if health["status"] == "healthy":
        return ok(_CHECK, f"at {url}: {health['message']}")
    problems = [
        f"{name}: {answered.get('message')}"
        for name, answered in health["dependencies"].items()
        if answered.get("status") == "unhealthy"
    ]
    found = f"at {url}, {health['status']}: {'; '.join([health['message'], *problems])}"
    return failed(_CHECK, found, f"mend what it names; {url}{_PATH} and its log have more")
