"""Envelopes sent from odd places: from within an observer, and from a task with a context of its own."""

from __future__ import annotations

from contextvars import ContextVar

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Supervisor,
    serve_until_empty,
)
from tests.supervision.harness import AT_ONCE, Boom, Context, Recorder, fail_on_max_deliveries, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


class Chatty(Recorder):
    """Sends an envelope from within a report, once."""

    pool: DynamicSupervisor[str]

    def __init__(self, kind: str, path: str, key: str) -> None:
        super().__init__()
        self.cue = (kind, path)
        self.key: str | None = key

    def _hear(self, kind: str, path: str) -> None:
        if (kind, path) == self.cue and self.key is not None:
            key, self.key = self.key, None
            self.pool.deliver_nowait(key, "from the observer")

    def actor_started(self, path: str, incarnation: int) -> None:
        super().actor_started(path, incarnation)
        self._hear("started", path)

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        super().actor_ended(path, incarnation, reason, error)
        self._hear("ended", path)

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        super().actor_restarting(path, delay_seconds)
        self._hear("restarting", path)


@guarantees(
    "An observer may send messages; a child still has one attempt at a time, and no back-off becomes shorter",
    topic="Observer",
)
@pytest.mark.parametrize(
    ("kind", "path", "key"),
    [
        ("started", "a", "b"),  # known, and not started yet: the run begins
        ("started", "a", "new"),
        ("started", "a", "a"),
        ("ended", "a", "a"),
        ("ended", "crashes", "crashes"),
        ("ended", "crashes late", "crashes late"),
        ("restarting", "crashes", "crashes"),
    ],
)
async def test_an_observer_may_send_messages(kind: str, path: str, key: str) -> None:
    observer = Chatty(kind, path, key)
    at_work: list[str] = []
    two_at_a_time: list[str] = []
    got: list[tuple[str, str]] = []

    async def handle_for(context: Context, envelopes: list[Envelope[str]]) -> None:
        two_at_a_time.extend(name for name in at_work if name == context.name)
        at_work.append(context.name)
        await anyio.lowlevel.checkpoint()
        at_work.remove(context.name)
        if context.name == "crashes" and context.incarnation == 1:
            raise Boom
        got.extend((context.name, envelope.message) for envelope in envelopes)

    async def start(context: Context) -> None:
        first = not got.count((context.name, "x"))
        await serve_until_empty(
            context, lambda envelopes: handle_for(context, envelopes), on_max_deliveries=fail_on_max_deliveries
        )
        if context.name == "crashes late" and first:
            raise Boom  # with nothing left to do

    pool: DynamicSupervisor[str] = DynamicSupervisor(
        "pool", start, mailbox_capacity=5, max_children=5, backoff=AT_ONCE, observer=observer
    )
    observer.pool = pool
    keys = ["a", "b", "crashes", "crashes late"]
    for known in keys:
        pool.deliver_nowait(known, "x")
    context: Context = ActorContext("pool")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, context)
        await until(lambda: len(got) == 5 and pool.snapshot().total_children == 0)
        context.request_stop()
    assert sorted(got) == sorted([*((known, "x") for known in keys), (key, "from the observer")])
    assert two_at_a_time == []
    # Every attempt that began has ended, and none began while another one was at it.
    events = [(event[0], event[1]) for event in observer.events if event[0] in ("started", "ended")]
    for name in {path for _, path in events}:
        assert [what for what, path in events if path == name] == ["started", "ended"] * observer.started(name)
    # A crash is followed by the back-off before anything starts; one with nothing left to do, by nothing.
    assert observer.of("restarting") == [("crashes", 0.0)]
    crash = [event[0] for event in observer.events if event[1] == "crashes"]
    assert crash[:4] == ["started", "ended", "restarting", "started"]


WHO: ContextVar[str] = ContextVar("who", default="the supervisor")


@guarantees(
    "A child inherits the context variables of the supervisor, not of a sender or of its last attempt",
    topic="Dynamic supervisors",
)
async def test_an_attempt_has_the_context_of_its_supervisor_not_of_a_sender() -> None:
    seen: list[tuple[str, int, str]] = []

    async def start(context: Context) -> None:
        seen.append((context.name, context.incarnation, WHO.get()))
        WHO.set(f"an attempt of {context.name}")

        async def handle(envelopes: list[Envelope[str]]) -> None:
            if envelopes[0].message == "crash" and context.incarnation == 1:
                raise Boom
            await anyio.lowlevel.checkpoint()
            context.ack(envelopes)
            if envelopes[0].message == "leave":
                pool.deliver_nowait("other", "x")

        await serve_until_empty(context, handle, on_max_deliveries=fail_on_max_deliveries)

    pool: DynamicSupervisor[str] = DynamicSupervisor("pool", start, mailbox_capacity=5, max_children=5, backoff=AT_ONCE)
    async with running(Supervisor("root", [ChildSpec("pool", pool.run)])):
        WHO.set("a sender")
        pool.deliver_nowait("a", "crash")
        pool.deliver_nowait("a", "leave")
        await until(lambda: len(seen) == 3 and pool.snapshot().total_children == 0)
    assert seen == [("a", 1, "the supervisor"), ("a", 2, "the supervisor"), ("other", 1, "the supervisor")]
