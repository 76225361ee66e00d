"""A kill counts as a crash, hits what it names, and may come at any moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    RestartIntensity,
    RestartIntensityExceeded,
    State,
    Strategy,
    Supervisor,
    UnknownChild,
    serve,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    Boom,
    Context,
    Puppet,
    Recorder,
    fail_on_max_deliveries,
    running,
    until,
)
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


def reached(count: int, started: Callable[[], int]) -> Callable[[], bool]:
    return lambda: started() >= count


@guarantees("A kill counts as a crash, also the kill of a supervisor", topic="Restart intensity and escalation")
@pytest.mark.parametrize("target", ["actor", "supervisor"])
async def test_kills_count_towards_the_intensity(target: str) -> None:
    observer = Recorder()
    puppet = Puppet("a")
    below = Supervisor("below", [puppet.spec()], backoff=AT_ONCE)
    spec = puppet.spec() if target == "actor" else ChildSpec("a", below.run)
    root = Supervisor("root", [spec], intensity=RestartIntensity(2, 1_000.0), backoff=AT_ONCE, observer=observer)
    async with running(root) as tree:
        for attempt in (1, 2, 3):
            await until(reached(attempt, lambda: observer.started("a")))
            assert not tree.ended.is_set()
            assert root.kill("a", "shot")
        await until(tree.ended.is_set)
    assert isinstance(tree.error, RestartIntensityExceeded)
    assert tree.error.last_error == "shot"
    assert observer.started("a") == 3


@guarantees("A dynamic supervisor counts the kills of its children, too", topic="Restart intensity and escalation")
async def test_kills_of_dynamic_children_count_together() -> None:
    workers = Workers(intensity=RestartIntensity(2, 1_000.0))
    workers.hold("a", "b", "c")
    async with running(workers.root):
        for key in "abc":
            workers.supervisor.deliver_nowait(key, 1)
        await anyio.wait_all_tasks_blocked()
        for key in "abc":
            assert workers.observer.of("exceeded") == []
            assert workers.supervisor.kill(key, "shot")
            await until(lambda: workers.observer.reasons(f"workers/{key}"))  # noqa: B023 - awaited at once
        assert workers.observer.of("exceeded") == [("workers",)]
        workers.release()
        await until(lambda: workers.alive == 0)
    assert sorted(workers.got) == [("a", 1), ("b", 1), ("c", 1)]


class Assassin(Recorder):
    """Kills something from within the report that an attempt begins, the first time it hears of it."""

    root: Supervisor

    def __init__(self, victim: str, when: str) -> None:
        super().__init__()
        self.victim = victim
        self.when = when
        self.hits: list[bool] = []

    def actor_started(self, path: str, incarnation: int) -> None:
        super().actor_started(path, incarnation)
        if path == self.when and not self.hits:
            self.hits.append(self.root.kill(self.victim, "at birth"))


@guarantees(
    "If the observer kills a child while it is notified of that child's start, nothing is lost",
    topic="Kill by path",
)
@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize(
    ("victim", "when"),
    [
        ("in/m", "in/m"),
        ("in/pool/k", "in/pool/k"),
        ("in/pool", "in/pool"),
        ("in/pool", "in/pool/k"),
        ("in", "in"),
        ("in", "in/m"),
        ("in", "in/pool/k"),
        ("in/m", "in/pool/k"),
    ],
)
async def test_a_kill_at_the_moment_of_a_start_loses_nothing(victim: str, when: str, strategy: Strategy) -> None:
    mailbox: Mailbox[str] = Mailbox("m", 5)
    handled: list[tuple[str, int]] = []

    async def handle(envelopes: list[Envelope[str]]) -> None:
        handled.extend((envelope.message, envelope.attempts) for envelope in envelopes)

    async def server(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=fail_on_max_deliveries)

    async def worker(context: Context) -> None:
        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    observer = Assassin(victim, when)
    options: dict[str, Any] = {"backoff": AT_ONCE, "intensity": OFTEN}
    pool: DynamicSupervisor[str] = DynamicSupervisor("pool", worker, mailbox_capacity=5, max_children=5, **options)
    children = [ChildSpec("m", server, mailbox=mailbox), ChildSpec("pool", pool.run)]
    inner = Supervisor("in", children, strategy=strategy, **options)
    root = observer.root = Supervisor("root", [ChildSpec("in", inner.run)], observer=observer, **options)
    mailbox.send_nowait("to m")
    pool.deliver_nowait("k", "to k")
    async with running(root):
        await until(lambda: len(handled) == 2)
        await until(lambda: {node.state for _, node in root.snapshot().iter_flat()} == {State.RUNNING})
        mailbox.send_nowait("more")
        pool.deliver_nowait("k", "more")
        await until(lambda: len(handled) == 4)
    assert observer.hits == [True]
    assert observer.reasons(victim)[0] == "at birth"
    assert sorted(handled) == [("more", 0), ("more", 0), ("to k", 0), ("to m", 0)]


@guarantees("A cancelled supervisor starts no further child", topic="Start and stop")
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_a_supervisor_that_is_cancelled_starts_nothing_more(strategy: Strategy) -> None:
    observer = Recorder()
    go = anyio.Event()

    async def start(context: Context) -> None:
        context.ready()
        if context.incarnation == 1 and context.name == "a":
            await go.wait()
            raise Boom
        await context.wait_stopping()

    options: dict[str, Any] = {"backoff": AT_ONCE, "intensity": OFTEN}
    inner = Supervisor("in", [ChildSpec(name, start) for name in "ab"], strategy=strategy, **options)
    async with running(Supervisor("root", [ChildSpec("in", inner.run)], observer=observer, **options)) as tree:
        # In one turn: a crashes, the supervisor has something to look at, and is cancelled before it comes to that.
        go.set()
        assert inner.kill("b", "shot")
        assert tree.root.kill("in", "shot")
        await until(lambda: observer.started("in/b") == 2)
    started = [event[1:] for event in observer.events if event[0] == "started"]
    assert started == [("in", 1), ("in/a", 1), ("in/b", 1), ("in", 2), ("in/a", 2), ("in/b", 2)]


@guarantees("A path with a slash at the end is unknown", topic="Kill by path")
async def test_a_path_with_a_slash_at_the_end_is_unknown() -> None:
    workers = Workers()
    workers.hold("")
    async with running(workers.root):
        with pytest.raises(UnknownChild):
            workers.root.kill("workers/")
        workers.supervisor.deliver_nowait("", 1)
        await anyio.wait_all_tasks_blocked()
        assert [path for path, _ in workers.root.snapshot().iter_flat()] == ["workers", "workers/"]
        assert workers.root.kill("workers/", "shot")
        workers.release()
        await until(lambda: workers.alive == 0)
    assert workers.observer.reasons("workers/") == ["shot", "returned"]
    assert workers.observer.reasons("workers") == ["stopped"]
