"""Callers over TLS, with and without client certificates; the limits for callers hold as without TLS."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from bcs.config.loading import load_settings
from bcs.config.settings import InvalidSettings
from bcs.domain.facts import EssaysRegistered
from bcs.domain.state import delta_of
from bcs.http import tls
from bcs.http.identity import Scope
from bcs.ops.doctor.settings_findings import callers as findings_about_callers
from tests.support.callers import (
    TOKENS,
    Response,
    asking,
    bearer,
    callers,
    files_looked_at_often,
    replace,
    request,
    response_of,
)
from tests.support.service import DEFINE, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1", "shutdown_seconds": 5.0}
HEAD_SECONDS = 0.3
SEND_SECONDS = 0.3
PLACES = 6
ESSAYS = 5000
BATCH = "/internal/v1/batches/large?limit=5000"
PASSWORD = "password-of-the-key"  # noqa: S105 (a test)
# What the callers of the file have in their certificates.
DNS, URI, COMMON = "bos.example.com", "spiffe://example.com/bos", "bos"


@dataclass(frozen=True)
class Authority:
    """A CA with files for a service and for clients."""

    directory: Path
    ca: trustme.CA

    @property
    def file(self) -> Path:
        """Its certificate."""
        path = self.directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def issue(self, name: str, *identities: str, common: str | None = None, days: int = 1) -> Path:
        """A certificate with its key, in one file."""
        if any("://" in identity for identity in identities):
            return self._issue_with_uris(name, identities, common)
        until = datetime.now(UTC) + timedelta(days=days)
        issued = self.ca.issue_cert(
            *identities, common_name=common, not_before=until - timedelta(days=30), not_after=until
        )
        path = self.directory / f"{name}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def _issue_with_uris(self, name: str, uris: tuple[str, ...], common: str | None) -> Path:
        """Trustme makes none with URIs."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)] if common else [])
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(names, critical=True)
            .sign(signer, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.directory / f"{name}.pem"
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def context(self, client: Path | None = None, **options: object) -> ssl.SSLContext:
        """For a client that trusts this authority."""
        context = ssl.create_default_context(cafile=str(self.file))
        if client:
            context.load_cert_chain(client)
        for option, value in options.items():
            setattr(context, option, value)
        return context


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), trustme.CA())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("foreign"), trustme.CA())


@pytest.fixture(scope="module")
def file(ours: Authority) -> Path:
    path = ours.directory / "callers.json"
    scopes = {DNS: "resolve", URI: "report", COMMON: "read"}
    more = [{"name": f"cert-{scope}", "scopes": [scope], "certificates": [name]} for name, scope in scopes.items()]
    path.write_text(callers(*more))
    return path


@pytest.fixture(scope="module", autouse=True)
def often() -> Iterator[None]:
    with files_looked_at_often():
        yield


@pytest.fixture(scope="module")
def service(ours: Authority, file: Path) -> Iterator[RunningService]:
    """A service that asks for client certificates, with few places and little patience."""
    with service_in_thread(
        **NOWHERE,
        http_tokens_file=file,
        http_tls_certfile=ours.issue("service", "127.0.0.1"),
        http_tls_client_cafile=ours.file,
        http_probe_port=0,
        http_head_seconds=HEAD_SECONDS,
        http_send_seconds=SEND_SECONDS,
        http_max_connections=PLACES,
    ) as running:
        yield running


@asynccontextmanager
async def connected(
    service: RunningService, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*service.service.address, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with anyio.fail_after(20), suppress(OSError):
            await writer.wait_closed()


async def answer(service: RunningService, context: ssl.SSLContext | None, sent: bytes) -> Response:
    async with connected(service, context) as (reader, writer):
        writer.write(sent)
        return await response_of(reader)


def probes(service: RunningService) -> Orchestrator:
    host, port = service.service.probe_address
    return Orchestrator(f"http://{host}:{port}")


@pytest.mark.parametrize(
    ("identities", "common", "status"),
    [
        ((DNS,), None, 200),
        ((DNS,), "somebody", 200),
        (("other.example.com", DNS), None, 200),
        ((URI,), None, 403),
        ((), COMMON, 403),
        (("other.example.com",), "somebody", 401),
        # An authority that checks host names may not check the common name.
        (("other.example.com",), COMMON, 401),
        (("https://other.example.com",), COMMON, 401),
        ((f"not-{DNS}",), None, 401),
        ((f"*.{DNS.partition('.')[2]}",), None, 401),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_certificate_names_its_caller(
    service: RunningService,
    ours: Authority,
    identities: tuple[str, ...],
    common: str | None,
    status: int,
    version: ssl.TLSVersion,
) -> None:
    context = ours.context(ours.issue("client", *identities, common=common), maximum_version=version)
    assert (await answer(service, context, asking(DEFINE))).status == status


async def test_a_token_counts_more_than_the_certificate(service: RunningService, ours: Authority) -> None:
    context = ours.context(ours.issue("client", DNS))
    for token, status in ((TOKENS[Scope.RESOLVE], 200), (TOKENS[Scope.READ], 403), ("token-that-nobody-has", 401)):
        assert (await answer(service, context, asking(DEFINE, bearer(token)))).status == status


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "peer did not return a certificate"),
        ("expired", "certificate has expired"),
        ("foreign", "self-signed certificate in certificate chain"),
        ("old version", "unsupported protocol"),
    ],
)
async def test_who_has_no_valid_certificate_gets_no_connection(
    service: RunningService, ours: Authority, foreign: Authority, kind: str, reason: str
) -> None:
    issuer = foreign if kind == "foreign" else ours
    client = issuer.issue("client", DNS, days=-1 if kind == "expired" else 1)
    context = ours.context(None if kind == "none" else client)
    if kind == "foreign":
        # The client sends its chain with the authority that nobody here trusts.
        client.write_bytes(client.read_bytes() + foreign.file.read_bytes())
        context.load_cert_chain(client)
    if kind == "old version":
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    with capture_logs() as logs:
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await answer(service, context, asking(DEFINE, bearer(TOKENS[Scope.RESOLVE])))
        [refused] = await wait_until(lambda: [entry for entry in logs if entry["event"] == "tls_refused"])
    assert reason in refused["reason"]
    assert refused["address"] == "127.0.0.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_is_no_way_around_the_expiry(
    service: RunningService, ours: Authority, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ours.context(ours.issue("client", DNS), maximum_version=version)

    def ask(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None, bool | None]:
        plain = socket.create_connection(service.service.address)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as caller:
            caller.sendall(asking(DEFINE))
            found = caller.recv(9000)[9:12], caller.session, caller.session_reused
            if found[0]:
                caller.unwrap()  # or else the session counts as broken
            return found

    monkeypatch.setattr(tls, "time", lambda: datetime.now(UTC).timestamp() + 2 * 86400)
    # The service may read a certificate again meanwhile, which another test has issued. That ends all sessions.
    for _ in range(10):
        answered, session, _ = ask(None)
        assert answered == b"200"  # OpenSSL, which has the real time, checks this handshake
        answered, _, reused = ask(session)
        if reused or version is ssl.TLSVersion.TLSv1_3:
            break
    # In TLS 1.3 no session is kept, and OpenSSL checks the certificate at each handshake.
    assert (answered, reused) == ((b"", True) if version is ssl.TLSVersion.TLSv1_2 else (b"200", False))


def test_a_caller_whose_handshake_is_refused_is_told_why(service: RunningService, ours: Authority) -> None:
    # In TLS 1.3 the caller may have sent its request before, and a reset for it could overtake the reason.
    context = ours.context(ours.issue("client", DNS, days=-1), maximum_version=ssl.TLSVersion.TLSv1_2)
    plain = socket.create_connection(service.service.address)
    with plain, pytest.raises(ssl.SSLError, match="certificate expired"):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


async def test_a_caller_without_tls_is_told_so(service: RunningService) -> None:
    found = await answer(service, None, asking(DEFINE, bearer(TOKENS[Scope.RESOLVE])))
    assert (found.status, found.kind) == (400, "tls-required")
    assert "Connection: close" in found.head


@pytest.mark.parametrize("sent", [b"\0" * 100, b"\x16\x03\x01" + b"\xff" * 500, b"SSH-2.0-x\r\n"])
async def test_bytes_that_are_neither_tls_nor_http_end_the_connection(service: RunningService, sent: bytes) -> None:
    async with connected(service, None) as (reader, writer):
        writer.write(sent)
        with anyio.fail_after(20):
            assert b"HTTP" not in await reader.read()


async def test_a_large_body_and_a_large_answer_pass(service: RunningService, ours: Authority) -> None:
    context = ours.context(ours.issue("client", DNS))
    body = json.dumps({"padding": "x" * 700_000}).encode()
    found = await answer(service, context, request("POST", DEFINE, body=body))
    assert (found.status, found.kind) == (400, "invalid-request")
    await know_a_large_batch(service)
    found = await answer(service, context, request("GET", BATCH, bearer(TOKENS[Scope.READ])))
    assert (found.status, len(found.body) > 200_000) == (200, True)


async def know_a_large_batch(service: RunningService) -> None:
    essays = tuple(f"essay-{'x' * 100}-{number}" for number in range(ESSAYS))
    store = service.service.store
    await anyio.to_thread.run_sync(
        service.run, store.commit, "large", delta_of([EssaysRegistered(essays, len(essays), 1)])
    )


async def test_pipelined_requests_over_tls_are_answered_in_order(service: RunningService, ours: Authority) -> None:
    context = ours.context(ours.issue("client", "nobody.example.com"))
    tokens = [TOKENS[Scope.RESOLVE], "token-that-nobody-has", TOKENS[Scope.READ], TOKENS[Scope.RESOLVE]]
    async with connected(service, context) as (reader, writer):
        writer.write(b"".join(asking(DEFINE, bearer(token)) for token in tokens))
        assert [(await response_of(reader)).status for _ in tokens] == [200, 401, 403, 200]


async def dropped(service: RunningService, waited_for: str, reason: str) -> float:
    async with probes(service) as caller:
        return await caller.metric("bcs_http_callers_dropped_total", waited_for=waited_for, reason=reason) or 0


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("share", [0.5, 1.0])
async def test_a_handshake_that_comes_late_ends_with_the_time_for_a_head(
    service: RunningService, ours: Authority, share: float
) -> None:
    before = await dropped(service, "head", "too_late")
    hello = client_hello(ours.context())
    async with connected(service, None) as (reader, writer):
        writer.write(hello[: int(len(hello) * share)])
        with anyio.fail_after(20):
            while await reader.read(1000):
                pass
    assert await dropped(service, "head", "too_late") == before + 1


async def test_a_crowd_of_handshakes_keeps_nobody_out(service: RunningService, ours: Authority) -> None:
    hello = client_hello(ours.context())
    async with AsyncExitStack() as stack:
        for _ in range(PLACES * 3):
            _, writer = await stack.enter_async_context(connected(service, None))
            writer.write(hello[:100])
        context = ours.context(ours.issue("client", DNS))

        async def answered() -> bool:
            try:
                return (await answer(service, context, asking(DEFINE))).status == 200
            except (OSError, asyncio.IncompleteReadError):
                return False  # there was no room at that moment

        await wait_until(answered)


async def test_who_does_not_read_an_answer_over_tls_is_dropped(service: RunningService, ours: Authority) -> None:
    await know_a_large_batch(service)
    before = await dropped(service, "answer", "too_late")
    context = ours.context(ours.issue("client", COMMON, common=COMMON))

    def ask() -> ssl.SSLSocket:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(service.service.address)
        caller = context.wrap_socket(plain, server_hostname="127.0.0.1")
        for _ in range(10):
            caller.sendall(request("GET", BATCH))
        return caller

    with await anyio.to_thread.run_sync(ask):

        async def is_dropped() -> bool:
            return await dropped(service, "answer", "too_late") > before

        await wait_until(is_dropped)


async def test_a_certificate_is_replaced_without_a_restart(ours: Authority, foreign: Authority) -> None:
    path, key = ours.directory / "replaced.pem", ours.directory / "replaced.key"

    def install(authority: Authority, *, with_key: bool = True) -> None:
        issued = authority.ca.issue_cert("127.0.0.1")
        replace(path, b"".join(blob.bytes() for blob in issued.cert_chain_pems).decode())
        if with_key:
            replace(key, issued.private_key_pem.bytes().decode())

    async def trusted(by: Authority) -> bool:
        try:
            return (await answer(own, by.context(), request("GET", "/readyz"))).status == 200
        except ssl.SSLError:
            return False

    async def problem() -> str:
        health = json.loads((await answer(own, ours.context(), request("GET", "/healthz"))).body)
        message: str = health["credentials"].get("BCS_HTTP_TLS_CERTFILE", "")
        return message

    install(ours)
    with service_in_thread(**NOWHERE, http_tls_certfile=path, http_tls_keyfile=key) as own:
        async with connected(own, ours.context()) as (reader, writer):
            install(foreign, with_key=False)
            assert "key values mismatch" in await wait_until(problem)
            assert await trusted(ours)
            install(foreign)
            await wait_until(lambda: trusted(foreign))
            assert not await trusted(ours)
            # A connection from before goes on.
            writer.write(request("GET", "/readyz"))
            assert (await response_of(reader)).status == 200


@pytest.mark.parametrize(
    ("days_left", "named"), [(-1, "the certificate expired at "), (2, "and was not renewed yet"), (4, "")]
)
def test_a_certificate_of_the_service_that_ends_is_named(
    ours: Authority, monkeypatch: pytest.MonkeyPatch, days_left: int, named: str
) -> None:
    settings = load_settings(**NOWHERE, http_tls_certfile=ours.issue("ending", "127.0.0.1", days=10))  # of thirty
    in_use = tls.tls_of(settings)
    assert in_use
    monkeypatch.setattr(tls, "time", lambda: datetime.now(UTC).timestamp() + (10 - days_left) * 86400)
    assert bool(in_use.problem_in_use()) == bool(named)
    assert named in in_use.problem_in_use()
    assert [named in finding.found for finding in findings_about_callers(settings)] == [True] * bool(named)


async def test_a_certificate_that_expires_while_the_service_runs_is_named_until_it_is_replaced(
    ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ours.issue("expiring", "127.0.0.1", days=10)
    with capture_logs() as logs, service_in_thread(**NOWHERE, http_tls_certfile=path) as own:

        async def named() -> str:
            health = json.loads((await answer(own, ours.context(), request("GET", "/healthz"))).body)
            message: str = health["credentials"].get("BCS_HTTP_TLS_CERTFILE", "")
            return message

        assert not await named()
        monkeypatch.setattr(tls, "time", lambda: datetime.now(UTC).timestamp() + 11 * 86400)
        cause = await wait_until(named)
        assert cause.startswith("the certificate expired at ")
        assert not cause.endswith("stays in use")
        assert cause in [entry["cause"] for entry in logs if entry["event"] == "credentials_unusable"]
        ours.issue("expiring", "127.0.0.1", days=20)

        async def is_well() -> bool:
            return not await named()

        await wait_until(is_well)


def encrypted_key(authority: Authority) -> tuple[Path, Path]:
    issued = authority.ca.issue_cert("127.0.0.1")
    certificate, key = authority.directory / "locked.pem", authority.directory / "locked.key"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    loaded = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        )
    )
    return certificate, key


async def test_a_key_may_have_a_password(ours: Authority) -> None:
    certificate, key = encrypted_key(ours)
    files = {"http_tls_certfile": certificate, "http_tls_keyfile": key}
    with service_in_thread(**NOWHERE, **files, http_tls_key_password=PASSWORD) as own:
        assert (await answer(own, ours.context(), asking(DEFINE))).status == 200
    for password in (None, "another-password"):
        with pytest.raises(InvalidSettings, match="BCS_HTTP_TLS_CERTFILE") as refused:
            service_in_thread(**NOWHERE, **files, http_tls_key_password=password).__enter__()
        assert "password" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"http_tls_certfile": "absent"}, r"absent \(BCS_HTTP_TLS_CERTFILE\) can't be read: No such file"),
        ({"http_tls_certfile": "a-pipe"}, "can't be read: it is not a regular file"),
        ({"http_tokens_file": "a-pipe"}, "can't be read: it is not a regular file"),
        ({"http_tls_certfile": "ca.pem"}, "the certificate and its key can't be used"),
        ({"http_tls_certfile": "callers.json"}, "the certificate and its key can't be used"),
        (
            {"http_tls_certfile": "good.pem", "http_tls_client_cafile": "callers.json"},
            "the certificates in BCS_HTTP_TLS_CLIENT_CAFILE can't be used",
        ),
        ({"http_tls_keyfile": "good.pem"}, "BCS_HTTP_TLS_KEYFILE: needs BCS_HTTP_TLS_CERTFILE"),
        ({"http_tls_client_cafile": "ca.pem"}, "BCS_HTTP_TLS_CLIENT_CAFILE: needs BCS_HTTP_TLS_CERTFILE"),
        (
            {"http_tls_certfile": "good.pem", "http_tls_client_cafile": "ca.pem", "http_tokens_file": None},
            "BCS_HTTP_TLS_CLIENT_CAFILE: needs BCS_HTTP_TOKENS_FILE",
        ),
        ({"http_port": 4002, "http_probe_port": 4002}, "BCS_HTTP_PROBE_PORT: must not be BCS_HTTP_PORT"),
    ],
)
def test_files_that_cannot_be_used_refuse_the_start(
    ours: Authority, file: Path, settings: dict[str, object], problem: str
) -> None:
    ours.issue("good", "127.0.0.1")
    pipe = ours.directory / "a-pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    paths = {name: ours.directory / value if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(InvalidSettings, match=problem):
        service_in_thread(**NOWHERE, **{"http_tokens_file": file, **paths}).__enter__()
