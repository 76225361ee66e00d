"""Commands show a token and a certificate to the service, and trust only the service's authority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from bcs.config.settings import Environment, Settings
from bcs.ops.doctor.findings import Status
from bcs.ops.doctor.settings_findings import callers as findings_about_callers
from bcs.runtime.process import warn_of_unknown_callers
from tests.support.callers import TOKENS, callers
from tests.support.commands import Ran, bcs
from tests.support.service import RunningService, service_in_thread

pytestmark = pytest.mark.anyio

NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("commands")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    other.cert_pem.write_to_path(str(directory / "other.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(directory / "service.pem"))
    authority.issue_cert("operator").private_key_and_cert_chain_pem.write_to_path(str(directory / "operator.pem"))
    for name, token in TOKENS.items():
        (directory / name).write_text(f"{token}\n")
    (directory / "unknown").write_text("token-that-nobody-has")
    operator = {"name": "operator", "scopes": ["read"], "certificates": ["operator"]}
    (directory / "callers").write_text(callers(operator))
    return directory


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[RunningService]:
    with service_in_thread(
        **NOWHERE,
        http_tokens_file=directory / "callers",
        http_tls_certfile=directory / "service.pem",
        http_tls_client_cafile=directory / "ca.pem",
        http_probe_port=0,
    ) as running:
        yield running


@pytest.fixture
def environment(service: RunningService, directory: Path) -> dict[str, object]:
    """Of a command on the machine of the service."""
    return {
        "BCS_HTTP_HOST": "127.0.0.1",
        "BCS_HTTP_PORT": service.service.address[1],
        "BCS_HTTP_PROBE_PORT": service.service.probe_address[1],
        "BCS_HTTP_TOKENS_FILE": directory / "callers",
        "BCS_HTTP_TLS_CERTFILE": directory / "service.pem",
        "BCS_HTTP_TLS_CLIENT_CAFILE": directory / "ca.pem",
        "BCS_COMMAND_CAFILE": directory / "ca.pem",
        "BCS_COMMAND_CERTFILE": directory / "operator.pem",
        "BCS_TOKEN_FILE": directory / "resolve",
    }


def is_one_line(ran: Ran, text: str, exit_code: int = 1) -> bool:
    return ran.exit_code == exit_code and text in ran.error and ran.error.count("\n") <= exit_code


async def test_commands_send_the_token_of_a_file(environment: dict[str, object], directory: Path) -> None:
    resolved = await bcs("resolve", "b", "nlp", "--json", **environment)
    assert resolved.json["final_pipeline"] == ["spellcheck", "nlp"]
    forbidden = await bcs("actors", **environment)
    assert is_one_line(forbidden, "403 Forbidden: this caller has no scope read")
    unknown = await bcs("actors", **{**environment, "BCS_TOKEN_FILE": directory / "unknown"})
    assert is_one_line(unknown, "401 Unauthorized")
    assert "BCS_TOKEN_FILE" in unknown.error
    assert "token-that-nobody-has" not in unknown.error
    unreadable = await bcs("actors", **{**environment, "BCS_TOKEN_FILE": directory / "absent"})
    assert is_one_line(unreadable, "the file of BCS_TOKEN_FILE can't be read", exit_code=2)


async def test_without_a_token_the_certificate_counts(environment: dict[str, object]) -> None:
    assert (await bcs("actors", "--json", **{**environment, "BCS_TOKEN_FILE": ""})).json["name"] == "bcs"


async def test_commands_trust_no_other_authority(environment: dict[str, object], directory: Path) -> None:
    for file, text in (("other.pem", "the certificate of the service is not trusted"), ("resolve", "can't be used")):
        ran = await bcs("actors", **{**environment, "BCS_COMMAND_CAFILE": directory / file})
        assert text in ran.error
        assert "BCS_COMMAND_CAFILE" in ran.error
    ran = await bcs("actors", **{**environment, "BCS_COMMAND_CERTFILE": directory / "other.pem"})
    assert is_one_line(ran, "BCS_COMMAND_CERTFILE", exit_code=2)


async def test_a_file_of_callers_that_cannot_be_used_ends_the_start_with_two(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "callers"
    file.write_text(directory.joinpath("callers").read_text().replace('"read"', '"reed"', 1))
    ran = await bcs("serve", BCS_HTTP_PORT=0, BCS_HTTP_TOKENS_FILE=file, BCS_USE_MOCK_REPOSITORY="true")
    assert is_one_line(ran, f"BCS_HTTP_TOKENS_FILE: {file}, line ", exit_code=2)
    assert "scopes: Input should be" in ran.error


async def test_healthcheck_and_doctor_ask_the_port_of_the_probes(environment: dict[str, object]) -> None:
    bare = {name: value for name, value in environment.items() if not name.startswith(("BCS_COMMAND", "BCS_TOKEN"))}
    healthy = await bcs("healthcheck", **bare)
    assert (healthy.exit_code, healthy.error) == (0, "")


def test_production_without_known_callers_is_warned_of(directory: Path) -> None:
    known: dict[str, object] = {"http_tokens_file": directory / "callers"}
    cases: list[tuple[dict[str, object], Environment, bool]] = [
        ({}, Environment.PRODUCTION, True),
        ({}, Environment.DEVELOPMENT, False),
        (known, Environment.PRODUCTION, False),
    ]
    for settings, environment, expected in cases:
        made = Settings.model_validate({"environment": environment, **settings})
        with capture_logs() as logs:
            warn_of_unknown_callers(made)
        assert [entry["event"] for entry in logs] == ["callers_unknown"] * expected
        assert [finding.status for finding in findings_about_callers(made)] == [Status.WARNING] * expected


def test_doctor_names_a_file_of_callers_that_cannot_be_used(directory: Path) -> None:
    settings = Settings.model_validate({"http_tokens_file": directory / "read", "http_tls_certfile": directory / "x"})
    findings = findings_about_callers(settings)
    assert [finding.status for finding in findings] == [Status.FAILED] * 2
    assert "line 1" in findings[0].found
    assert TOKENS[next(iter(TOKENS))] not in findings[0].found
