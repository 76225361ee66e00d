"""Debian's PgBouncer in transaction mode, in front of a PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bcs.devtools.servers.embedded import HOST, EmbeddedServer

# So few that clients get connections on which others worked before them.
_SERVER_CONNECTIONS = 2

_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} {password}
[pgbouncer]
listen_addr = {listen_on}
listen_port = {listen_port}
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 200
unix_socket_dir =
"""


def pgbouncer_binary() -> str | None:
    """The program, where it is installed."""
    return shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")


@contextmanager
def pgbouncer(binary: str, postgres_url: str, connections: int = _SERVER_CONNECTIONS) -> Iterator[EmbeddedServer]:
    """A PgBouncer with the defaults of 1.18 but for its mode and the number of its connections.

    :param postgres_url: of the server behind it; every database of this server can be asked for.
    :param connections: of each database, for all clients together.
    """
    target = urlsplit(postgres_url)
    with tempfile.TemporaryDirectory(prefix="bcs-pgbouncer-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # it refuses to be root, and whoever runs it instead must get to its file

        def command(port: int) -> list[str]:
            (directory / "pgbouncer.ini").write_text(
                _CONFIGURATION.format(
                    host=target.hostname,
                    port=target.port or 5432,
                    user=unquote(target.username or ""),
                    password=f"password={unquote(target.password)}" if target.password else "",
                    listen_on=HOST,
                    listen_port=port,
                    connections=connections,
                )
            )
            return [binary, str(directory / "pgbouncer.ini")]

        server = EmbeddedServer("pgbouncer", directory, None, command, _listens)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            server.process_options = {
                **server.process_options,
                "user": user.pw_uid,
                "group": user.pw_gid,
                "extra_groups": [],
            }
        with server:
            yield server


def behind(pooler: EmbeddedServer, database_url: str) -> str:
    """The URL of a database as clients of the pooler name it."""
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{pooler.address}").geturl()


def _listens(port: int, _process_id: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
