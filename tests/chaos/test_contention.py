"""Processes write to one batch at the same time, as replicas do in a rebalance; one fact per commit, at its worst."""

import asyncio
import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Self

import anyio
import pytest

from bcs.domain.progress import summarize
from bcs.domain.state import delta_of
from bcs.storage.committing import CommitPolicy
from bcs.storage.redis.batch_codec import VERSION_FIELD, BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.nodes import Nodes
from tests.chaos.contending_writer import GO, READY, Commit, Share, contend, drawn_facts, open_store
from tests.chaos.figures import Note, percentile
from tests.chaos.sizes import SIZES
from tests.support.forked import ForkedProcess, made_fifo
from tests.support.laws import LAW
from tests.support.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.anyio

WRITERS = SIZES.writers
LEAST_QUESTIONS = 10
LEAST_ATTEMPTS = 1.05  # for one commit on average; measured: 1.2 of four writers, 2.2 of eight
SECONDS_PER_FACT = 0.05  # many times what it takes; without end is what it must not be


class Writer:
    """A process that has loaded everything and waits for the word."""

    def __init__(self, directory: Path, share: Share) -> None:
        directory.mkdir()
        word, self._said, log = (directory / name for name in ("word", "said", "log"))
        self._speaking = made_fifo(word)
        for file in (self._said, log):
            file.touch()
        self._process = ForkedProcess(
            [share.as_argument()], os.environ, stdin=word, stdout=self._said, stderr=log, program=contend
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._speaking.close()
        self._process.kill()
        self._process.wait()

    def is_ready(self) -> bool:
        return self._said.read_text() == READY

    def go(self) -> None:
        self._speaking.write(GO)
        self._speaking.flush()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def commits(self) -> list[Commit]:
        assert self._process.returncode == 0
        return [Commit(**commit) for commit in json.loads(self._said.read_text().removeprefix(READY))]


async def written_by_all(share: Share, directory: Path) -> tuple[list[Commit], float]:
    """What each commit of all writers took, and all of them together in seconds."""
    with ExitStack() as stack:
        shares = [replace(share, writer=number) for number in range(WRITERS)]
        writers = [stack.enter_context(Writer(directory / f"writer-{each.writer}", each)) for each in shares]
        await wait_until(lambda: all(writer.is_ready() for writer in writers))
        began = monotonic()
        for writer in writers:
            writer.go()
        await wait_until(lambda: all(writer.has_ended() for writer in writers), share.facts * SECONDS_PER_FACT)
        seconds = monotonic() - began
        return [commit for writer in writers for commit in writer.commits()], seconds


async def watch_summary(nodes: Nodes, store: RedisStateStore, batch: str, keys: BatchKeys, over: anyio.Event) -> int:
    """Ask about the batch again and again while it is written to: no answer is older than its question.

    :returns: how often it was asked.
    """
    asked = 0
    version = ("HGET", keys.facts, VERSION_FIELD)

    async def look() -> bool:
        nonlocal asked
        [before] = await nodes.at(keys.facts).call(version)
        summary = await store.summary(batch)
        [after] = await nodes.at(keys.facts).call(version)
        assert int(before or 0) <= summary.version <= int(after or 0)
        asked += 1
        return over.is_set()

    await wait_until(look, PATIENCE_SECONDS + SIZES.contended_facts * SECONDS_PER_FACT)
    return asked


@pytest.mark.parametrize("by_transaction", [pytest.param(False, marks=pytest.mark.release), True])
@pytest.mark.parametrize("seed", [6])
async def test_processes_that_write_to_one_batch_lose_nothing(
    tmp_path: Path, redis_url: str, redis_key_prefix: str, note_figure: Note, seed: int, by_transaction: bool
) -> None:
    count, batch = SIZES.contended_facts, "contended"
    nodes, store = open_store(redis_url, redis_key_prefix)
    over = anyio.Event()
    keys = BatchKeys(redis_key_prefix, batch)
    watching = asyncio.create_task(watch_summary(nodes, store, batch, keys, over))
    try:
        share = Share(redis_url, redis_key_prefix, batch, seed, count, WRITERS, 0, by_transaction)
        commits, seconds = await written_by_all(share, tmp_path)
        over.set()
        assert await watching >= LEAST_QUESTIONS
        model = delta_of(drawn_facts(seed, count))
        summary = await store.summary(batch)
        assert summary == summarize(model, LAW, summary.version)
        assert await store.state(batch) == model
    finally:
        watching.cancel()
        await nodes.aclose()

    attempts = [commit.conflicts + 1 for commit in commits]
    fallbacks = sum(commit.fallback for commit in commits)
    times_ms = [commit.seconds * 1000 for commit in commits]
    assert len(commits) == count
    if by_transaction:
        assert sum(attempts) >= LEAST_ATTEMPTS * count, "they did not meet often"
        assert max(attempts) <= CommitPolicy().attempts + 1
    else:
        assert sum(attempts) == count, "a script has no conflicts"
    note_figure(
        6,
        f"{WRITERS} processes {'by transaction' if by_transaction else 'by script'}, {count} facts in {seconds:.1f} s: "
        "all there; "
        f"{sum(attempts)} attempts, at most {max(attempts)} for one commit; {fallbacks} fallbacks "
        f"({fallbacks / count:.1%}); per commit p50 {percentile(times_ms, 50):.1f} ms, p99 "
        f"{percentile(times_ms, 99):.1f} ms, longest {max(times_ms):.1f} ms",
    )
