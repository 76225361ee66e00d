"""Row 9: an actor that hangs is found and restarted; one that ignores that makes the process unhealthy, and no more."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bcs.devtools.servers import embedded
from bcs.domain.state import BatchState
from bcs.observability.failpoints import FailPoint
from bcs.supervision import Snapshot, State
from bcs.wire import topics
from tests.chaos.figures import Note
from tests.chaos.history import told
from tests.chaos.servers import killed_at_the_end
from tests.support.events import Event, registered, spellchecked
from tests.support.kafka import Platform, create_platform_topics, uuids, values
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

# Much more than the second that a poll of the intake may take while it joins its group.
HANG_SECONDS = 2.5
REDIS_DEADLINE_SECONDS, DATABASE_DEADLINE_SECONDS = 0.3, 0.1
EXTRA_GRACE_SECONDS = 5.0 if IN_FULL else 0.3  # what a killed actor gets besides these two deadlines
# The watchdog looks ten times in that time.
LATE_SECONDS = HANG_SECONDS / 10 + 0.2
TICK_SECONDS = 0.02
ROUNDING_SECONDS = 0.005  # the clock of uvloop counts milliseconds
SETTINGS: dict[str, object] = {
    "hang_seconds": HANG_SECONDS,
    "redis_deadline_seconds": REDIS_DEADLINE_SECONDS,
    "database_deadline_seconds": DATABASE_DEADLINE_SECONDS,
    "kafka_request_timeout_seconds": 0.5,
    "kafka_session_timeout_seconds": 1.0,
    "kafka_heartbeat_interval_seconds": 0.2,
    "intake_commit_interval_seconds": 0.02,
    "restart_backoff_initial_seconds": 0.01,
}
VICTIM, NEIGHBOUR, DONE = "victim", "neighbour", "done"
HANGS = [
    (FailPoint.BATCH_RECEIVED, VICTIM),
    (FailPoint.BEFORE_REPLY, VICTIM),
    (FailPoint.INTAKE_RECEIVED, "intake"),
    (FailPoint.BEFORE_OFFSET_COMMIT, "intake"),
    (FailPoint.PUBLISHER_LEASED, "publisher"),
]
STUBBORN_HANGS = [(FailPoint.BATCH_RECEIVED, VICTIM), (FailPoint.INTAKE_RECEIVED, "intake")]


@dataclass
class Hang:
    """One hang at one point, once it is armed.

    It looks at the tree from the service's own event loop: seen from elsewhere, what a busy machine makes late would
    count, too.

    :param stubborn: whether it ignores its cancellation.
    :ivar tree: the service's supervision tree.
    :ivar busy_since: the last sign of life before, from which the watchdog counts; by the clock of the event loop.
    :ivar ticks: how often the event loop came round to it while it hung.
    :ivar unhealthy_at: when the tree became unhealthy, and how many ticks after the hang had begun.
    """

    point: FailPoint
    subject: str
    stubborn: bool = False
    armed: bool = False
    let_go: anyio.Event | None = None  # on the service's event loop
    tree: Callable[[], Snapshot] | None = None
    busy_since: float | None = None
    ticks: int = 0
    unhealthy_at: tuple[float, int] | None = None
    ended: float | None = None

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `bcs.observability.failpoints.FailPointHook`."""
        if not self.armed or self.busy_since is not None or (point, subject) != (self.point, self.subject):
            return
        assert self.tree
        path = f"batches/{subject}" if subject == VICTIM else subject
        self.busy_since = anyio.current_time() - dict(self.tree().iter_flat())[path].busy_seconds
        self.let_go = anyio.Event()
        try:
            with anyio.CancelScope(shield=self.stubborn):
                await self._ticks(self.tree)
        finally:
            self.ended = anyio.current_time()

    async def _ticks(self, tree: Callable[[], Snapshot]) -> None:
        assert self.let_go
        while not self.let_go.is_set():
            # Each tick looks at the tree, until the test lets go.
            await anyio.sleep(TICK_SECONDS)
            self.ticks += 1
            if self.unhealthy_at is None and not tree().healthy:
                self.unhealthy_at = anyio.current_time(), self.ticks

    @property
    def actor(self) -> str:
        """Which child of the root it concerns."""
        return "batches" if self.subject == VICTIM else self.subject

    def after(self, moment: float, ticks: int, seconds: float) -> float:
        """Check that what was to happen so long after the last sign of life was not early, and not much too late.

        :param moment: when it happened.
        :param ticks: how many there were until then: a late event loop has fewer.
        :returns: how long after the last sign of life it happened.
        """
        assert self.busy_since is not None
        passed = moment - self.busy_since
        assert seconds - ROUNDING_SECONDS <= passed
        assert ticks * TICK_SECONDS <= seconds + LATE_SECONDS
        return passed


@dataclass
class Scene:
    """A service in which an actor hangs, and what goes on around it."""

    hang: Hang
    service: RunningService
    platform: Platform
    orchestrator: Orchestrator
    model: dict[str, BatchState] = field(default_factory=dict)

    async def send(self, *events: Event) -> None:
        """Tell these, the model too."""
        for one in map(told, events):
            self.model.setdefault(one.batch, BatchState()).merge(one.delta)
        await self.platform.send(*events)

    async def begin(self) -> None:
        """Bring it to where it hangs."""
        await self.send(spellchecked(DONE, "essay"))
        await self.settled()
        self.hang.armed = True
        await self.send(*(spellchecked(VICTIM, essay) for essay in ("a", "b")), registered(VICTIM, ["a", "b"]))
        assert await self.orchestrator.to_run(DONE, correlation_id="request") == ["ai_feedback"]
        await wait_until(lambda: self.hang.let_go is not None)

    async def settled(self) -> None:
        """Wait until everything sent is committed."""
        await wait_until(lambda: self.platform.caught_up(self.service.group))

    async def assert_others_are_served(self) -> None:
        """Requests are answered, facts that they report recorded, and other batches' events applied."""
        assert await self.orchestrator.to_run(DONE, correlation_id="request") == ["ai_feedback"]
        assert (await self.orchestrator.complete("reported", "spellcheck")).status == 200
        assert await self.orchestrator.to_run("reported", correlation_id="another") == ["ai_feedback"]
        assert (
            (await self.orchestrator.get("/metrics")).status == (await self.orchestrator.get("/readyz")).status == 200
        )
        if self.hang.actor != "intake":
            await self.send(spellchecked(NEIGHBOUR, "essay"))
            await wait_until(self._neighbour_is_known)
        if self.hang.stubborn:
            assert self.hang.ended is None, "all that while it hung"
            assert await self.platform.uncommitted(self.service.group), "what it hangs over is not taken for done"

    async def _neighbour_is_known(self) -> bool:
        return await self.orchestrator.to_run(NEIGHBOUR) == ["ai_feedback"]

    async def assert_all_well(self) -> None:
        """Everything sent is applied, every pruning announced, and nothing given up."""
        await self.settled()
        for batch, state in self.model.items():
            found = await anyio.to_thread.run_sync(self.service.run, self.service.service.store.state, batch)
            assert found == state

        async def announced() -> bool:
            records = values(await self.platform.messages(topics.PHASE_SKIPPED))
            return uuids({"request", "another"}) <= {record["data"]["correlation_id"] for record in records}

        await wait_until(announced)
        for topic in topics.CONSUMED:
            assert await self.platform.messages(topics.dead_letter_topic(topic)) == []
        assert self.child().state is State.RUNNING
        counts = [sample for sample in await self.orchestrator.samples() if sample[0] == "bcs_actor_restarts_total"]
        restarted = {labels["actor"]: count for _, labels, count in counts if count}
        assert restarted == {"batches/*" if self.hang.actor == "batches" else self.hang.actor: 1}

    def child(self) -> Snapshot:
        """The actor, or the supervisor of the one that hangs."""
        return next(child for child in self.service.snapshot().children if child.name == self.hang.actor)


@asynccontextmanager
async def staged(directory: Path, redis_url: str, hang: Hang) -> AsyncIterator[Scene]:
    """A service with a broker of its own."""
    settings = {**SETTINGS, "kill_grace_seconds": EXTRA_GRACE_SECONDS} if hang.stubborn else SETTINGS
    with killed_at_the_end(embedded.kafka(directory)) as server:
        await create_platform_topics(server.address)
        async with (
            Platform(server.address) as platform,
            running_service(
                hang.reach, redis_url=redis_url, kafka_bootstrap_servers=server.address, **settings
            ) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            hang.tree = service.service.root.snapshot
            try:
                yield Scene(hang, service, platform, orchestrator)
            finally:
                if hang.let_go is not None:
                    service.call(hang.let_go.set)


async def found_and_restarted(hang: Hang, directory: Path, redis_url: str) -> str:
    """Let an actor hang that ends when it is cancelled; returns the figure."""
    async with staged(directory, redis_url, hang) as scene:
        await scene.begin()
        await scene.assert_others_are_served()
        await wait_until(lambda: hang.ended is not None)
        assert hang.ended is not None
        found = hang.after(hang.ended, hang.ticks, HANG_SECONDS)
        await scene.assert_all_well()
        assert scene.child().last_error == "hung"
        return f"{hang.point} of {hang.actor}: found after {found:.2f} s"


async def unhealthy_until_it_lets_go(hang: Hang, directory: Path, redis_url: str) -> str:
    """Let an actor hang that ignores its cancellation; returns the figure."""
    grace_seconds = REDIS_DEADLINE_SECONDS + DATABASE_DEADLINE_SECONDS + EXTRA_GRACE_SECONDS
    async with staged(directory, redis_url, hang) as scene:

        async def has_health(status: int) -> bool:
            return (await scene.orchestrator.get("/healthz")).status == status

        await scene.begin()
        assert await has_health(200) or hang.unhealthy_at is not None, "it may still come to an end"
        await wait_until(lambda: has_health(503))
        await wait_until(lambda: hang.unhealthy_at)
        assert hang.unhealthy_at
        assert hang.let_go is not None
        told_after = hang.after(*hang.unhealthy_at, HANG_SECONDS + grace_seconds)
        await scene.assert_others_are_served()
        assert await has_health(503)
        scene.service.call(hang.let_go.set)
        await wait_until(lambda: has_health(200))
        await scene.assert_all_well()
        return f"{hang.point} of {hang.actor}, {grace_seconds:.1f} s of grace: 503 after {told_after:.2f} s, then 200"


async def side_by_side(
    play: Callable[[Hang, Path, str], Awaitable[str]], hangs: list[Hang], directory: Path, redis_url: str
) -> list[str]:
    """Each on a stage of its own: most of the time is spent waiting."""
    figures: list[str] = []
    failures: list[Exception] = []

    async def one(number: int, hang: Hang) -> None:
        try:
            figures.append(await play(hang, directory / str(number), redis_url))
        except Exception as failure:  # noqa: BLE001 (the others play on, and end in order)
            failure.add_note(str(hang))
            failures.append(failure)

    async with anyio.create_task_group() as group:
        for number, hang in enumerate(hangs):
            group.start_soon(one, number, hang)
    if failures:
        raise ExceptionGroup("not all is well after a hang", failures)
    return sorted(figures)


async def test_an_actor_that_hangs_is_found_and_restarted(tmp_path: Path, redis_url: str, note_figure: Note) -> None:
    for figure in await side_by_side(found_and_restarted, [Hang(*hang) for hang in HANGS], tmp_path, redis_url):
        note_figure(9, f"{figure}, where {HANG_SECONDS} s are allowed")


async def test_one_that_ignores_that_makes_the_process_unhealthy_and_no_more(
    tmp_path: Path, redis_url: str, note_figure: Note
) -> None:
    hangs = [Hang(*hang, stubborn=True) for hang in STUBBORN_HANGS]
    for figure in await side_by_side(unhealthy_until_it_lets_go, hangs, tmp_path, redis_url):
        note_figure(9, figure)
