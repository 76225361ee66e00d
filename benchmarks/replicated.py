"""What it would cost if each commit waited, by WAIT, until a replica has it: the same commits without it and with it.

    .venv/bin/python -m benchmarks.replicated

BCS does not do this; docs/deploying.md says why, with the figures from here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import structlog
import typer

from bcs.config.pipelines import load_pipelines
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.domain.state import delta_of
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.commands import Command
from bcs.storage.redis.multiplexer import Replies
from bcs.storage.redis.nodes import Node, Nodes
from benchmarks.measured import Measured, middle, percentiles_ms
from benchmarks.report import Report
from benchmarks.usage import ServersCpu, cpu_seconds, per_operation
from benchmarks.world import Redis, nodes_of
from tests.support.redis_servers import redis_server
from tests.support.waiting import wait_until

_WAIT: Command = ("WAIT", 1, 5_000)
# As many as the actors of batches commit at a time.
_CALLERS = 8
_BATCHES = 200


class _WaitingNodes:
    """Sends WAIT behind each small call, which is what a commit is."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nodes, name)

    def at(self, key: str, /) -> Node:
        """See `Nodes.at`."""
        return cast("Node", _WaitingNode(self._nodes.at(key)))


class _WaitingNode:
    def __init__(self, node: Node) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def call_multiplexed(self, *commands: Command) -> Replies:
        """See `Node.call_multiplexed`."""
        replies = await self._node.call_multiplexed(*commands, _WAIT)
        if replies.pop() < 1:
            raise TimeoutError("no replica has it")
        return replies


def main(commits: int = 20_000, rounds: int = 6) -> None:
    """Commit to one server, to one with a replica, and to one with a replica that is waited for, in turns."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory(prefix="bcs-bench-") as directory:
        report = anyio.run(measured, Path(directory), commits, rounds, backend_options={"use_uvloop": True})
    typer.echo(report.table())


async def measured(directory: Path, commits: int, rounds: int) -> Report:
    """Measure the three, with the CPU of the master and of the replica."""
    law = load_pipelines(None).law(require_registration=False)
    with (
        redis_server(directory / "alone") as alone,
        redis_server(directory / "master", "--repl-diskless-sync-delay", "0") as master,
        redis_server(directory / "replica", "--replicaof", *master.address.split(":")) as replica,
    ):
        without, within = (nodes_of(Redis(f"redis://{server.address}", [server])) for server in (alone, master))

        async def follows() -> bool:
            [told] = await within.at("any").call(("INFO", "replication"))
            return b"state=online" in told

        await wait_until(follows)
        ways: list[tuple[str, Nodes, Sequence[EmbeddedServer]]] = [
            ("commit, one server", without, [alone]),
            ("commit, a master with a replica", within, [master, replica]),
            ("commit, a master with a replica, WAIT 1", cast("Nodes", _WaitingNodes(within)), [master, replica]),
        ]
        rows: list[list[Measured]] = [[] for _ in ways]
        for turn in range(rounds + 1):
            for row, (path, nodes, servers) in zip(rows, ways, strict=True):
                store = RedisStateStore(nodes, law=law, key_prefix="wait:", ttl_seconds=604_800)
                figures = await _commits(store, path, Redis("", servers), commits, turn)
                if turn:  # the first one warms up
                    row.append(figures)
        for nodes in (without, within):
            await nodes.aclose()
    return Report([middle(row) for row in rows])


async def _commits(store: RedisStateStore, path: str, redis: Redis, commits: int, turn: int) -> Measured:
    took: list[float] = []
    numbers = iter(range(commits))

    async def commit() -> None:
        for number in numbers:
            # Later than in the turns before, because a fact that is known already changes nothing.
            at_us = 1_764_000_000_000_000 + turn * commits + number
            fact = EssayPhaseEnded("spellcheck", f"essay-{number // _BATCHES % 30}", Outcome.COMPLETED, at_us)
            began = time.perf_counter()
            await store.commit(f"batch-{number % _BATCHES}", delta_of([fact]))
            took.append(time.perf_counter() - began)

    cpu, of_redis = cpu_seconds(os.getpid()), ServersCpu(redis.cpu_seconds(), None)
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(_CALLERS):
            group.start_soon(commit)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(os.getpid()) - cpu
    return Measured(
        path,
        commits,
        commits / seconds,
        cpu / commits * 1e6,
        **per_operation(of_redis, ServersCpu(redis.cpu_seconds(), None), commits),
        **percentiles_ms(took),
    )


if __name__ == "__main__":
    typer.run(main)
