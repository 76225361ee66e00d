"""Listeners of an Apache Kafka that want TLS and logins, with certificates and users made for them."""

from __future__ import annotations

import base64
import json
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bcs.devtools.servers.embedded import HOST, free_port

USER, PASSWORD = "bcs", "open-sesame-19"
OPENS_KEY = "key-sesame-19"
_JAAS = {
    "scram-sha-256": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    "scram-sha-512": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    "plain": f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    "oauthbearer": "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
}
# Each listener with its protocol.
_LISTENERS = {
    "LOGIN": "SASL_SSL",
    "SHORT": "SASL_SSL",  # a login lasts a second
    "MUTUAL": "SSL",
    "EXPIRED": "SSL",
    "NAKED": "SASL_PLAINTEXT",
}
# Those who log in with a password, and the owner of the client certificates.
USERS = (USER, "operator", "stranger")
OWNER = "owner"


@dataclass
class SecuredKafka:
    """Certificates, ports and properties of a broker with secured listeners beside its plain one.

    :param directory: for the files.
    :param plain: the address of the plain listener, where everything is allowed.
    """

    directory: Path
    plain: str = ""
    ca: trustme.CA = field(default_factory=trustme.CA)
    foreign: trustme.CA = field(default_factory=trustme.CA)
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in _LISTENERS})

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca.cert_pem.write_to_path(self.directory / "ca.pem")
        self.foreign.cert_pem.write_to_path(self.directory / "foreign-ca.pem")
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self._keep("broker", self.ca.issue_cert(HOST))
        self._keep("broker-expired", self.ca.issue_cert(HOST, not_after=yesterday))
        self._keep("client", self.ca.issue_cert("bcs@example", common_name=OWNER))
        self._keep("client-expired", self.ca.issue_cert("bcs@example", common_name=OWNER, not_after=yesterday))
        self._keep("client-foreign", self.foreign.issue_cert("bcs@example", common_name=OWNER))

    def file(self, name: str) -> Path:
        """A file of these certificates, such as `ca.pem`, `client.pem`, `client.key` and `client-encrypted.key`."""
        return self.directory / name

    def address(self, listener: str, host: str = HOST) -> str:
        """Where a listener is."""
        return f"{host}:{self.ports[listener]}"

    @cached_property
    def properties(self) -> dict[str, str]:
        """The broker's properties, beside those for the plain listener."""
        properties = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",  # all that come by the plain listener
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.file("ca.pem")),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.file("broker-chain.pem")),
            "ssl.principal.mapping.rules": "RULE:^.*CN=([a-z]+).*$/$1/,DEFAULT",
            "connection.failed.authentication.delay.ms": "0",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.expired.ssl.keystore.location": str(self.file("broker-expired-chain.pem")),
            "listener.name.naked.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.short.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.short.scram-sha-512.connections.max.reauth.ms": "1000",
        }
        for listener in ("login", "short", "naked"):
            for mechanism, module in _JAAS.items():
                properties[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = module
        return properties

    @property
    def listeners(self) -> dict[str, tuple[str, int]]:
        """The name of each listener to its protocol and port."""
        return {name: (protocol, self.ports[name]) for name, protocol in _LISTENERS.items()}

    @property
    def scram(self) -> tuple[str, ...]:
        """Options of `kafka-storage format` that make the users."""
        options = []
        for user in USERS:
            options += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={PASSWORD}]"]
        options += ["--add-scram", f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"]
        return tuple(options)

    def login(self, mechanism: str = "SCRAM-SHA-512", **more: object) -> dict[str, object]:
        """Settings for the listener with TLS and a login."""
        settings: dict[str, object] = {
            "kafka_bootstrap_servers": self.address("LOGIN"),
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": mechanism,
            "kafka_ssl_cafile": self.file("ca.pem"),
        }
        if mechanism != "OAUTHBEARER":
            settings |= {"kafka_sasl_username": USER, "kafka_sasl_password": PASSWORD}
        return settings | more

    def mutual(self, client: str = "client", **more: object) -> dict[str, object]:
        """Settings for the listener that asks for a client certificate."""
        return {
            "kafka_bootstrap_servers": self.address("MUTUAL"),
            "kafka_security_protocol": "SSL",
            "kafka_ssl_cafile": self.file("ca.pem"),
            "kafka_ssl_certfile": self.file(f"{client}.pem"),
            "kafka_ssl_keyfile": self.file(f"{client}.key"),
            **more,
        }

    def _keep(self, name: str, certificate: trustme.LeafCert) -> None:
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        key = load_pem_private_key(certificate.private_key_pem.bytes(), None)

        def as_pem(encryption: KeySerializationEncryption) -> bytes:
            # Kafka reads no other format of keys.
            return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

        self.file(f"{name}.pem").write_bytes(chain)
        self.file(f"{name}.key").write_bytes(as_pem(NoEncryption()))
        self.file(f"{name}-encrypted.key").write_bytes(as_pem(BestAvailableEncryption(OPENS_KEY.encode())))
        self.file(f"{name}-chain.pem").write_bytes(as_pem(NoEncryption()) + chain)


def token(subject: str = USER, *, seconds: float = 3600.0) -> str:
    """A bearer token without a signature, which Kafka accepts unless it is told otherwise.

    :param seconds: until it expires.
    """
    now = time.time()
    parts = {"alg": "none"}, {"sub": subject, "iat": now - 1, "exp": now + seconds}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def server_context(secured: SecuredKafka) -> ssl.SSLContext:
    """TLS for a server of the test's own, with a certificate of the same CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.file("broker.pem"), secured.file("broker.key"))
    return context
