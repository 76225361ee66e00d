"""Observers: whom a supervisor tells what, and that none of them can harm it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ChildSpec,
    RestartIntensity,
    RestartIntensityExceeded,
    Supervisor,
)
from tests.supervision.harness import AT_ONCE, Boom, Context, Puppet, Recorder, running, until
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "A supervisor uses its own observer if it has one, and passes it to the supervisors below",
    topic="Observer",
)
async def test_a_supervisor_keeps_its_own_observer_and_passes_it_on() -> None:
    outer, middle, below = Recorder(), Recorder(), Recorder()
    a, b, c = Puppet("a"), Puppet("b"), Puppet("c")
    pool = Workers(observer=below).supervisor
    other = Workers().supervisor
    low = Supervisor("low", [c.spec()])
    mid = Supervisor(
        "mid",
        [b.spec(), ChildSpec("low", low.run), ChildSpec("pool", pool.run), ChildSpec("other", other.run)],
        observer=middle,
    )
    root = Supervisor("root", [a.spec(), ChildSpec("mid", mid.run)], observer=outer)
    pool.deliver_nowait("k", 1)
    other.deliver_nowait("k", 1)
    async with running(root):
        await until(lambda: below.reasons("mid/pool/k") and middle.reasons("mid/other/k"))
    assert [path for path, _ in outer.of("started")] == ["a", "mid"]
    assert {path for path, _ in middle.of("started")} == {
        "mid/b",
        "mid/low",
        "mid/low/c",
        "mid/pool",
        "mid/other",
        "mid/other/k",
    }
    assert [path for path, _ in below.of("started")] == ["mid/pool/k"]


@guarantees("An observer whose truth value is false is used all the same", topic="Observer")
async def test_an_observer_that_is_falsy_is_used() -> None:
    class Silent(Recorder):
        def __len__(self) -> int:
            return 0

    observer = Silent()
    async with running(Supervisor("root", [Puppet("a").spec()], observer=observer)):
        pass
    assert observer.reasons("a") == ["stopped"]


@guarantees("Errors of an observer are logged and stop no actor", topic="Observer")
async def test_an_observer_that_always_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    class Broken:
        def __getattr__(self, name: str) -> Any:
            def refuse(*_: object) -> None:
                heard.append(name)
                raise Boom(name)

            return refuse

    release = anyio.Event()

    async def shielded(context: Context) -> None:
        context.ready()
        if context.incarnation == 1:
            with anyio.CancelScope(shield=True):
                await release.wait()
        await context.wait_stopping()

    root = Supervisor(
        "root",
        [ChildSpec("a", shielded)],
        backoff=AT_ONCE,
        intensity=RestartIntensity(1, 1_000.0),
        observer=Broken(),
        kill_grace_seconds=0.02,
    )
    async with running(root) as tree:
        assert root.kill("a")
        await until(lambda: not root.healthy)
        release.set()
        await until(lambda: root.snapshot().children[0].incarnation == 2)
        assert root.healthy
        assert root.kill("a")
        await until(tree.ended.is_set)
    assert isinstance(tree.error, RestartIntensityExceeded)
    assert heard == [
        "actor_started",
        "actor_unresponsive",
        "actor_ended",
        "actor_restarting",
        "actor_started",
        "actor_ended",
        "intensity_exceeded",
    ]
    assert caplog.text.count("an observer failed") == len(heard)


@guarantees(
    "A supervisor gives up once, at the first restart above the limit, also if many children crash at the same time",
    topic="Restart intensity and escalation",
)
async def test_a_supervisor_reports_once_that_it_gives_up() -> None:
    observer = Recorder()
    go = anyio.Event()

    async def start(context: Context) -> None:
        context.ready()
        await go.wait()
        raise Boom(context.name)

    specs = [ChildSpec(name, start) for name in "abc"]
    root = Supervisor("root", specs, intensity=RestartIntensity(0), backoff=AT_ONCE, observer=observer)
    async with running(root) as tree:
        go.set()  # all crash in the same turn
        await until(tree.ended.is_set)
    assert observer.of("exceeded") == [("",)]
    assert isinstance(tree.error, RestartIntensityExceeded)
    assert tree.error.last_error == f"Boom: {observer.of('ended')[0][0]}"


@guarantees("A crash after a stop request causes no restart, and is not counted", topic="Start and stop")
async def test_a_crash_after_a_stop_request_causes_no_restart() -> None:
    observer = Recorder()
    go = anyio.Event()

    async def start(context: Context) -> None:
        context.ready()
        await go.wait()
        raise Boom

    root = Supervisor("root", [ChildSpec("a", start)], intensity=RestartIntensity(0), observer=observer)
    context: Context = ActorContext("root")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(root.run, context)
        await until(lambda: context.ready_at is not None)
        context.request_stop()
        go.set()  # it crashes before the supervisor has come to stopping it
    assert observer.reasons("a") == ["crashed"]
    assert (observer.of("exceeded"), observer.of("restarting")) == ([], [])
