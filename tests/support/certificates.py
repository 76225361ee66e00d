"""Certificates as files, for servers with TLS and for their clients."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme

HOSTS = ("127.0.0.1", "localhost")
_EXPIRED_AT = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class KeyPair:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path

    def write(self, other: KeyPair) -> None:
        """Put another certificate into these files, as a rotation does."""
        self.key.write_bytes(other.key.read_bytes())
        self.certificate.write_bytes(other.certificate.read_bytes())


class Authority:
    """A CA, whose certificates are files in a directory.

    :param directory: it has to be there.
    """

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.certificate)

    def issue(self, name: str, *identities: str, expired: bool = False) -> KeyPair:
        """A certificate for some identities, or for this machine.

        :param name: of the files.
        """
        pair = KeyPair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        expiry = _EXPIRED_AT if expired else None
        before = datetime(2019, 1, 1, tzinfo=UTC) if expired else None
        issued = self._ca.issue_cert(*(identities or HOSTS), common_name=name, not_before=before, not_after=expiry)
        issued.private_key_pem.write_to_path(pair.key)
        pair.key.chmod(0o600)
        for number, certificate in enumerate(issued.cert_chain_pems):
            certificate.write_to_path(pair.certificate, append=number > 0)
        return pair
