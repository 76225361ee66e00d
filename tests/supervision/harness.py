"""What the tests of the supervision library share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ActorDied,
    Backoff,
    BaseSupervisor,
    ChildSpec,
    Envelope,
    Mailbox,
    Reply,
    RestartIntensity,
    run_tree,
)

Context = ActorContext[Any]
Start = Callable[[Context], Awaitable[None]]

AT_ONCE = Backoff(initial_seconds=0.0)
OFTEN = RestartIntensity(max_restarts=100_000, period_seconds=1.0)
PATIENCE_SECONDS = 20.0
DIED = ActorDied("the actor", "for a test")


# trio has no cancellation but by scopes, so nothing can leak there.
ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)


class Boom(Exception):
    """What the actors of these tests crash with."""


@contextmanager
def raises_one(kind: type[BaseException]) -> Iterator[None]:
    """Expect one error, however many groups are around it."""
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - looked at below
        raised = error
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    assert isinstance(raised, kind), raised


async def until(condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS, step: float = 0.001) -> None:
    """Wait for a condition; on trio's clock this takes no time."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await anyio.sleep(step)


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    events: list[tuple[Any, ...]] = field(default_factory=list)

    def actor_started(self, path: str, incarnation: int) -> None:
        self.events.append(("started", path, incarnation))

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        self.events.append(("ended", path, incarnation, reason, type(error)))

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        self.events.append(("restarting", path, delay_seconds))

    def actor_unresponsive(self, path: str) -> None:
        self.events.append(("unresponsive", path))

    def intensity_exceeded(self, path: str) -> None:
        self.events.append(("exceeded", path))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """What it was told of one kind."""
        return [event[1:] for event in self.events if event[0] == kind]

    def started(self, path: str) -> int:
        """How many attempts of an actor began."""
        return sum(1 for event in self.of("started") if event[0] == path)

    def reasons(self, path: str) -> list[str]:
        """How the attempts of an actor ended."""
        return [event[2] for event in self.of("ended") if event[0] == path]


@dataclass
class Puppet:
    """An actor that does as it is told, and writes down when it starts and stops.

    `orders` are kept over its attempts; each is taken by one attempt.
    """

    name: str
    diary: list[str] = field(default_factory=list)
    crash_on_start: int = 0
    orders: list[BaseException | None] = field(default_factory=list)
    attempts: int = 0
    context: Context | None = None
    _order: anyio.Event | None = None

    async def start(self, context: Context) -> None:
        self.attempts += 1
        self.context = context
        self._order = anyio.Event()
        self.diary.append(f"+{self.name}")
        try:
            if self.crash_on_start:
                self.crash_on_start -= 1
                raise Boom(self.name)
            context.ready()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_when_stopping, context, tasks.cancel_scope)
                await self._order.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.diary.append(f"-{self.name}")
        if not context.stopping and (order := self.orders.pop(0)) is not None:
            raise order

    def crash(self) -> None:
        """Crash the attempt that runs."""
        self._give(Boom(self.name))

    def leave(self) -> None:
        """Have the attempt that runs return."""
        self._give(None)

    def _give(self, order: BaseException | None) -> None:
        assert self._order is not None
        self.orders.append(order)
        self._order.set()

    async def _cancel_when_stopping(self, context: Context, scope: anyio.CancelScope) -> None:
        await context.wait_stopping()
        scope.cancel()

    def spec(self, **options: Any) -> ChildSpec:
        return ChildSpec(self.name, self.start, **options)


@dataclass
class Handle:
    """A tree that runs."""

    root: BaseSupervisor
    stop: anyio.Event
    ended: anyio.Event
    in_time: bool | None = None
    error: BaseException | None = None


@asynccontextmanager
async def running(
    root: BaseSupervisor, *, shutdown_seconds: float = PATIENCE_SECONDS, wait_started: bool = True
) -> AsyncIterator[Handle]:
    """A tree that runs, and is stopped in the end. What it raises is in the handle."""
    handle = Handle(root, anyio.Event(), anyio.Event())
    started = anyio.Event()

    async def run() -> None:
        try:
            handle.in_time = await run_tree(root, handle.stop, shutdown_seconds=shutdown_seconds, started=started.set)
        except Exception as error:  # noqa: BLE001 - for the test to look at
            handle.error = error
        handle.ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        if wait_started:
            with anyio.fail_after(PATIENCE_SECONDS):
                await started.wait()
        yield handle
        handle.stop.set()
        with anyio.fail_after(shutdown_seconds + PATIENCE_SECONDS):
            await handle.ended.wait()


@dataclass(frozen=True)
class Question:
    """A message with a reply."""

    text: str
    reply: Reply[str]


def question(text: str) -> Callable[[Reply[str]], Any]:
    """What `ask` needs."""
    return lambda reply: Question(text, reply)


async def fail_on_max_deliveries(envelope: Envelope[Any]) -> None:
    """For actors whose envelopes are never given up."""
    pytest.fail(f"given up: {envelope}")


def texts(mailbox: Mailbox[str], limit: int = 100) -> list[str]:
    """Take what waits, and be done with it."""
    envelopes = mailbox.receive_nowait(limit)
    mailbox.ack(envelopes)
    return [envelope.message for envelope in envelopes]


def puppets(names: str) -> tuple[list[str], list[Puppet]]:
    """Puppets that share a diary."""
    diary: list[str] = []
    return diary, [Puppet(name, diary) for name in names]
