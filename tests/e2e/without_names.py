"""BCS without a name service that answers (Linux).

``unshare --map-root-user --mount --net python -m tests.e2e.without_names SCENARIO DIRECTORY`` plays a scenario in
namespaces of its own, and prints what came of it as JSON. That is no way to make one name's server silent and not the
others', but names of /etc/hosts, such as localhost, need no server.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from bcs.devtools.servers.embedded import valkey
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

_SIOCSIFFLAGS = 0x8914
_UP_AND_RUNNING = 0x1 | 0x40
_MS_BIND = 4096
BCS = (sys.executable, "-m", "bcs")
KAFKA = "kafka.bcs.invalid:9092"
NAMES: dict[str, object] = {
    "BCS_REDIS_URL": "redis://redis.bcs.invalid",
    "BCS_KAFKA_BOOTSTRAP_SERVERS": KAFKA,
    "BCS_DATABASE_URL": "postgresql://bcs@postgresql.bcs.invalid/bcs",
}


class SilentNames:
    """A name service that takes questions and never answers, the only one that there is."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        fcntl.ioctl(self._socket, _SIOCSIFFLAGS, struct.pack("16sh14s", b"lo", _UP_AND_RUNNING, b""))
        self._socket.bind(("127.0.0.1", 53))
        self._socket.setblocking(False)
        self._askers: set[int] = set()
        file = directory / "resolv.conf"
        # Longer than anybody here waits.
        file.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(str(file).encode(), b"/etc/resolv.conf", None, _MS_BIND, None):
            raise OSError(ctypes.get_errno(), "can't mount")

    def lookups(self) -> int:
        """How many lookups have begun; each has a port of its own."""
        while True:
            try:
                _, (_, port) = self._socket.recvfrom(4096)
            except BlockingIOError:
                return len(self._askers)
            self._askers.add(port)


async def stop(names: SilentNames, directory: Path) -> dict[str, object]:
    """Stop a service while it looks names up."""
    with serve(directory, "redis://redis.bcs.invalid", KAFKA, BCS_SHUTDOWN_SECONDS=5, command=BCS) as process:
        await wait_until(lambda: names.lookups() >= 2)
        await wait_until(lambda: "started" in process.log.read_text())
        process.signal(signal.SIGTERM)
        began = time.monotonic()
        exit_code = await process.ended()
        return {"exit_code": exit_code, "seconds": time.monotonic() - began, "log": process.log.read_text()}


async def reconnect(names: SilentNames, directory: Path) -> dict[str, object]:
    """Restart Redis, whose name can be looked up, while lookups of Kafka's hang."""
    with valkey(directory / "valkey") as server:
        where = f"redis://localhost:{server.port}"
        with serve(directory, where, KAFKA, BCS_KAFKA_REQUEST_TIMEOUT_SECONDS=1, command=BCS) as process:
            await process.answers()
            await wait_until(lambda: names.lookups() >= 4)
            server.restart()
            async with Orchestrator(process.base) as orchestrator:

                async def answered() -> bool:
                    return (await orchestrator.define("batch")).status == 200

                await wait_until(answered)
            return {"answered": True}


Scenario = Callable[[SilentNames, Path], Awaitable[dict[str, object]]]


def of_command(*arguments: str) -> Scenario:
    """A scenario: a command, run to its end."""

    async def command(_: SilentNames, directory: Path) -> dict[str, object]:
        with BcsProcess(directory, *arguments, command=BCS, **NAMES) as process:
            exit_code = await process.ended()
            return {"exit_code": exit_code, "said": process.output.read_text() + process.log.read_text()}

    return command


SCENARIOS: dict[str, Scenario] = {
    "stop": stop,
    "reconnect": reconnect,
    "doctor": of_command("doctor"),
    "dlq list": of_command("dlq", "list"),
    "batches show": of_command("batches", "show", "batch"),
    "batches history": of_command("batches", "history", "batch"),
    "db upgrade": of_command("db", "upgrade"),
    "actors": of_command("actors", "--url", "http://bcs.bcs.invalid:4002"),
}


def main() -> None:
    """Play one."""
    scenario, directory = SCENARIOS[sys.argv[1]], Path(sys.argv[2])
    print(json.dumps(anyio.run(scenario, SilentNames(directory), directory)))  # noqa: T201


if __name__ == "__main__":
    main()
