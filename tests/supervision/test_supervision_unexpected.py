"""A native cancellation that hits one of a tree's own tasks: the tree heals or says that it ended, and is never silent.

On asyncio only: trio has no cancellation but by scopes.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    State,
    Supervisor,
    UnexpectedCancellation,
    run_tree,
    serve,
    serve_until_empty,
)
from tests.supervision.harness import (
    AT_ONCE,
    OFTEN,
    ON_ASYNCIO,
    PATIENCE_SECONDS,
    Boom,
    Context,
    Question,
    Recorder,
    fail_on_max_deliveries,
    question,
    until,
)
from tests.support.guarantees import guarantees

pytestmark = [
    pytest.mark.anyio,
    ON_ASYNCIO,
]


class Tree:
    """root: in (m, pool), with a child of the pool at work and one that backs off for long."""

    def __init__(self) -> None:
        self.observer = Recorder()
        self.mailbox: Mailbox[Any] = Mailbox("m", 10)
        self.held = anyio.Event()
        self.handled: list[str] = []
        self.ended: UnexpectedCancellation | None = None
        self.returned: bool | None = None
        options: dict[str, Any] = {"backoff": AT_ONCE, "intensity": OFTEN}
        self.pool: DynamicSupervisor[str] = DynamicSupervisor(
            "pool",
            self.work,
            mailbox_capacity=5,
            max_children=5,
            shutdown_seconds=0.01,  # or a stop would wait for the one that backs off
            intensity=OFTEN,
            backoff=Backoff(300.0, 1.0, 300.0),
        )
        children = [ChildSpec("m", self.answer, mailbox=self.mailbox), ChildSpec("pool", self.pool.run)]
        inner = Supervisor("in", children, **options)
        self.root = Supervisor("root", [ChildSpec("in", inner.run)], observer=self.observer, **options)
        self.stop = anyio.Event()
        self.host: asyncio.Task[Any] | None = None

    async def answer(self, context: Context) -> None:
        async def handle(envelopes: list[Envelope[Question]]) -> None:
            envelopes[0].message.reply.send("yes")

        await serve(context, handle, on_max_deliveries=fail_on_max_deliveries)

    async def work(self, context: Context) -> None:
        async def handle(envelopes: list[Envelope[str]]) -> None:
            if context.incarnation == 1:
                if context.name == "crashes":
                    raise Boom
                await self.held.wait()
            self.handled.append(context.name)

        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    async def run(self) -> None:
        self.host = asyncio.current_task()
        try:
            self.returned = await run_tree(self.root, self.stop, shutdown_seconds=PATIENCE_SECONDS)
        except UnexpectedCancellation as error:
            self.ended = error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, asyncio.Task[Any]]]:
        """The tree, at work; yields its own tasks. Its host is not one: to cancel that is to cancel from outside."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run)
            self.pool.deliver_nowait("works", "x")
            self.pool.deliver_nowait("crashes", "x")
            await until(lambda: self.observer.of("restarting"))
            await anyio.wait_all_tasks_blocked()
            names = {id(task): task.get_name().removeprefix("bcs.supervision.") for task in asyncio.all_tasks()}
            names[id(self.host)] = "host"
            parents = {info.id: names.get(info.parent_id or 0, "") for info in anyio.get_running_tasks()}
            yield {
                f"{parents[id(task)]}: {names[id(task)].partition('.')[2] or names[id(task)]}": task
                for task in asyncio.all_tasks()
                if id(task) in parents and parents[id(task)] in ("host", "in", "in/pool")
            }
            self.stop.set()

    @property
    def well(self) -> bool:
        """Whether somebody has been restarted since the beginning, and all are there."""
        nodes = dict(self.root.snapshot().iter_flat())
        fixed = [nodes[path].state for path in ("in", "in/m", "in/pool")]
        return len(self.observer.of("restarting")) > 1 and fixed == [State.RUNNING] * 3


@guarantees(
    "After a native cancellation of one of the library's own tasks the supervisor restarts, or `run_tree` raises if"
    " no supervisor can restart that task",
    topic="Unexpected cancellation",
)
async def test_a_tree_hit_by_a_native_cancellation_recovers_or_raises() -> None:
    outcomes: dict[str, str] = {}
    victims: list[str] = [""]
    while victims:
        tree = Tree()
        async with tree.running() as own:
            victims = sorted(set(own) - set(outcomes))
            if victims:
                own[victims[0]].cancel()
                await until(lambda: tree.ended or tree.returned is not None or tree.well)  # noqa: B023 - awaited at once
                outcomes[victims[0]] = "said so" if tree.ended else "silent" if tree.returned else "healed"
            if tree.ended is None:
                assert await tree.mailbox.ask(question("x"), PATIENCE_SECONDS) == "yes"
            tree.held.set()
        assert tree.ended or tree.returned
    # The root's own tasks can't be replaced by anybody; all others can.
    assert outcomes == {
        "host: run_tree.<locals>.stop_when_asked": "said so",
        "host: BaseSupervisor._relay_stop": "said so",
        "host: in": "healed",
        "in: BaseSupervisor._relay_stop": "healed",
        "in: in/m": "healed",
        "in: in/pool": "healed",
        "in/pool: BaseSupervisor._relay_stop": "healed",
        "in/pool: DynamicSupervisor._wake_later": "healed",
        "in/pool: in/pool/works": "healed",
    }


# anyio leaves the coroutine of such a task alone.
@guarantees("An attempt whose task is cancelled before it began is restarted", topic="Unexpected cancellation")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_attempt_cancelled_before_it_began_is_restarted() -> None:
    tree = Tree()
    tree.held.set()
    async with tree.running():
        tree.pool.deliver_nowait("early", "x")  # takes the task of the actor that returned
        tree.pool.deliver_nowait("late", "x")
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "in/pool/late"]
        task.cancel()
        await until(lambda: "late" in tree.handled)
        await until(lambda: tree.pool.snapshot().total_children == 0)
        gc.collect()
    assert sorted(tree.handled) == ["crashes", "early", "late", "works"]
    assert tree.observer.reasons("in/pool") == ["crashed", "stopped"]
    assert tree.observer.of("unresponsive") == []  # the one that never began is not waited for
    assert tree.returned
