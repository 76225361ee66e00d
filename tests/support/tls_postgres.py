"""Debian's PostgreSQL with TLS; the wheel's has none."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
import weakref
from pathlib import Path
from urllib.parse import urlencode

from bcs.devtools.servers.embedded import HOST
from bcs.devtools.servers.postgres import PostgresServer, _run, _run_as
from tests.support.certificates import KeyPair

_INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
_OPTIONS = ("--max_connections=40", "--shared_buffers=16MB", "--fsync=off", "--dynamic_shared_memory_type=mmap")


def postgres_with_tls() -> Path | None:
    """The program; None where there is no PostgreSQL beside the wheel's."""
    program = shutil.which("postgres")
    return Path(program).resolve() if program else None


class TlsPostgres(PostgresServer):
    """A PostgreSQL that speaks TLS at its port, and plain text at a socket in `socket_directory`.

    At the port it takes passwords, and only through TLS; at the socket it trusts the user `postgres`.

    :param certificate: the server's certificate; it is copied, see `use`.
    :param ca: the CA of clients' certificates; the users in `certified` need one.
    :param certified: users who need a client certificate.
    """

    def __init__(self, directory: Path, certificate: KeyPair, ca: Path, certified: tuple[str, ...]) -> None:
        super().__init__(directory, None, durable=False)
        program = postgres_with_tls()
        assert program is not None
        self._binary = str(program)
        self._certificate, self._ca, self._certified = certificate, ca, certified

    @property
    def socket_directory(self) -> Path:
        """The directory of its socket."""
        return self.data.parent

    @property
    def url(self) -> str:
        """The URL of the database `postgres` for the superuser, at the socket."""
        options = {"host": str(self.socket_directory), "port": self.port}
        return f"postgresql://postgres@/postgres?{urlencode(options)}"

    def use(self, certificate: KeyPair) -> None:
        """Take another certificate for new connections."""
        self._copy(certificate)
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def _copy(self, certificate: KeyPair) -> None:
        own = KeyPair(self.data.with_name("server.pem"), self.data.with_name("server.key"))
        for path in (own.certificate, own.key):
            path.touch(mode=0o600)
            if identity := self._run_as.identity:
                os.chown(path, identity["user"], identity["group"])
        own.write(certificate)

    def _prepare(self, deadline: float) -> None:
        if self.data.exists():
            return
        self._run_as = _run_as(self._binary)
        self.process_options = {**self.process_options, **self._run_as.identity}
        # Not below pytest's directory: the path of a socket is short, and `nobody` has to reach it.
        directory = tempfile.mkdtemp(prefix="bcs-tls-")
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        if self._run_as.identity:
            os.chown(directory, self._run_as.identity["user"], self._run_as.identity["group"])
        self.data = Path(directory, f"data-{uuid.uuid4().hex[:8]}")
        initdb = str(Path(self._binary).with_name("initdb"))
        _run(self._run_as, 60.0, initdb, *_INITDB, f"--pgdata={self.data}")
        self._copy(self._certificate)
        ca = self.data.with_name("ca.pem")
        ca.write_bytes(self._ca.read_bytes())
        ca.chmod(0o644)
        rules = ["local all postgres trust", "local all all scram-sha-256"]
        rules += [f"hostssl all {user} {HOST}/32 scram-sha-256 clientcert=verify-ca" for user in self._certified]
        rules += [f"hostssl all all {HOST}/32 scram-sha-256"]
        self.data.joinpath("pg_hba.conf").write_text("\n".join(rules) + "\n")

    def _arguments(self, port: int) -> list[str]:
        beside = self.data.parent
        settings = [f"--port={port}", f"--listen_addresses={HOST}", f"--unix_socket_directories={beside}", "--ssl=on"]
        settings += [f"--ssl_cert_file={beside / 'server.pem'}", f"--ssl_key_file={beside / 'server.key'}"]
        settings += [f"--ssl_ca_file={beside / 'ca.pem'}", *_OPTIONS]
        return [*self._run_as.prefix, self._binary, "-D", str(self.data), *settings]
