"""Trees made, disturbed and stopped at random: what holds for every one of them."""

from __future__ import annotations

import math
import random
from typing import Any

import anyio
import pytest

from bcs.supervision import (
    ActorDied,
    AskTimeout,
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    Envelope,
    Mailbox,
    MailboxFull,
    RestartIntensity,
    State,
    Strategy,
    Supervisor,
    UnknownChild,
    serve,
    serve_until_empty,
)
from tests.supervision.harness import OFTEN, Boom, Context, Recorder, fail_on_max_deliveries, question, running, until
from tests.support.guarantees import guarantees
from tests.support.tiers import examples

pytestmark = pytest.mark.anyio

TICK_SECONDS = 0.001
DISTURBANCES = 40
FOREVER = 10**9

Target = Mailbox[Any] | DynamicSupervisor[Any]


class Witness(Recorder):
    """Looks whether what it is told fits together, and now and then kills somebody from within a report."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.alive: set[str] = set()
        self.unresponsive: set[str] = set()
        self.after: dict[str, list[str]] = {}  # the siblings that a restart of a child concerns too
        self.wrong: list[tuple[str, ...]] = []
        self.tree: Tree | None = None

    def actor_started(self, path: str, incarnation: int) -> None:
        if path in self.alive:
            self.wrong.append(("two attempts at a time", path))
        self.wrong += [("stopped too late", path, other) for other in self.after.get(path, []) if self._at_work(other)]
        self.alive.add(path)
        self._disturb()

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        if path not in self.alive:
            self.wrong.append(("ended, and never started", path))
        self.alive.discard(path)
        self.unresponsive.discard(path)
        self.wrong += [("outlives its supervisor", other) for other in self.alive if other.startswith(f"{path}/")]
        self._disturb()

    def actor_unresponsive(self, path: str) -> None:
        self.unresponsive.add(path)

    def _at_work(self, path: str) -> bool:
        return path in self.alive and path not in self.unresponsive

    def _disturb(self) -> None:
        if self.tree is not None and self.chance.random() < 0.05:
            self.tree.kill_somebody()


class Tree:
    """A random tree; its actors crash, return, hang, ignore cancellation and dawdle until they are told to behave."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.witness = Witness(self.chance)
        self.mailboxes: list[Mailbox[Any]] = []
        self.pools: list[DynamicSupervisor[Any]] = []
        self.handled: set[int] = set()
        self.root = self._branch("", 0, OFTEN)

    def kill_somebody(self) -> bool:
        path = self.chance.choice([path for path, _ in self.root.snapshot().iter_flat()])
        try:
            return self.root.kill(path)
        except UnknownChild:
            return False  # a supervisor retired it while this was looked up

    def behave(self) -> None:
        self.witness.tree = None

    async def send(self, target: Target, number: int) -> None:
        if isinstance(target, Mailbox):
            await target.send(number)
        else:
            await target.deliver(str(number % 4), number)

    async def ask(self, target: Target) -> str:
        if isinstance(target, Mailbox):
            return await target.ask(question("x"), 20 * TICK_SECONDS)
        return await target.ask(str(self.chance.randint(0, 3)), question("x"), 20 * TICK_SECONDS)

    @property
    def idle(self) -> bool:
        return all(not mailbox.depth for mailbox in self.mailboxes) and all(
            not pool.snapshot().total_children for pool in self.pools
        )

    def _branch(self, path: str, level: int, intensity: RestartIntensity) -> Supervisor:
        strategy = self.chance.choice(list(Strategy))
        names = "abcd"[: self.chance.randint(2, 4)]
        paths = [f"{path}/{name}".strip("/") for name in names]
        if strategy is not Strategy.ONE_FOR_ONE:
            self.witness.after |= {own: paths[index + 1 :] for index, own in enumerate(paths)}
        children = [self._child(name, own, level) for name, own in zip(names, paths, strict=True)]
        observer = None if level else self.witness
        return Supervisor(path or "root", children, strategy=strategy, observer=observer, **self._options(intensity))

    def _child(self, name: str, path: str, level: int) -> ChildSpec:
        few = RestartIntensity(self.chance.choice([3, 1_000]), 20 * TICK_SECONDS)
        kind = self.chance.choice(["actor", "pool"] if level == 2 else ["actor", "pool", "supervisor"])
        limits: dict[str, Any] = {
            "shutdown_seconds": self.chance.choice([1, 10, 1_000]) * TICK_SECONDS,
            "start_timeout_seconds": 1_000 * TICK_SECONDS,
        }
        if kind == "supervisor":
            return ChildSpec(name, self._branch(path, level + 1, few).run, **limits)
        if kind == "pool":
            settings = {
                "mailbox_capacity": 2,
                "max_children": 2,
                "max_running": self.chance.choice([1, math.inf]),
                "max_deliveries": FOREVER,
                **self._options(few),
            }
            self.pools.append(DynamicSupervisor(name, self._work, hang_seconds=5 * TICK_SECONDS, **settings))
            return ChildSpec(name, self.pools[-1].run, **limits)
        self.mailboxes.append(Mailbox(name, 3, FOREVER))
        hang = self.chance.choice([None, 5 * TICK_SECONDS])
        return ChildSpec(name, self._serve, mailbox=self.mailboxes[-1], hang_seconds=hang, **limits)

    def _options(self, intensity: RestartIntensity) -> dict[str, Any]:
        backoff = Backoff(self.chance.choice([0.0, TICK_SECONDS]), maximum_seconds=4 * TICK_SECONDS)
        return {"intensity": intensity, "backoff": backoff, "kill_grace_seconds": 2 * TICK_SECONDS}

    async def _serve(self, context: Context) -> None:
        await self._misbehave()
        await serve(context, self._handle, limit=3, on_max_deliveries=fail_on_max_deliveries)

    async def _work(self, context: Context) -> None:
        await self._misbehave()
        await serve_until_empty(context, self._handle, limit=3, on_max_deliveries=fail_on_max_deliveries)

    async def _handle(self, envelopes: list[Envelope[Any]]) -> None:
        for envelope in envelopes:
            await self._misbehave()
            if isinstance(envelope.message, int):
                self.handled.add(envelope.message)
            else:
                envelope.message.reply.send("yes")

    async def _misbehave(self) -> None:
        throw = self.chance.random() if self.witness.tree is not None else 1.0
        if throw < 0.1:
            raise Boom
        if throw < 0.15:
            await anyio.sleep(50 * TICK_SECONDS)
        elif throw < 0.2:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5 * TICK_SECONDS)
        elif throw < 0.6:
            await anyio.sleep(throw * TICK_SECONDS)


@guarantees(
    "Under random crashes, kills and hangs a child has only one attempt at a time. Under one_for_all and "
    "rest_for_one that attempt starts after the later children have stopped. Every attempt ends before its "
    "supervisor ends, and the tree recovers",
    topic="Strategies",
)
@guarantees("Every message is handled, whichever actors are killed", topic="Mailboxes")
@pytest.mark.parametrize("seed", range(examples(5)))
async def test_a_disturbed_tree_keeps_its_order_loses_nothing_and_recovers(seed: int) -> None:
    tree = Tree(seed)
    chance = tree.chance
    targets: list[Target] = [*tree.mailboxes, *tree.pools]
    sent: set[int] = set()
    killed = 0

    async def send(first: int) -> None:
        for number in range(first, first + FOREVER):
            if killed >= DISTURBANCES or not targets:
                return
            target = chance.choice(targets)
            with anyio.move_on_after(chance.choice([0, 1, 20]) * TICK_SECONDS):
                if number % 3:
                    await tree.send(target, number)
                    sent.add(number)
                else:
                    try:
                        await tree.ask(target)
                    except (ActorDied, MailboxFull, AskTimeout):
                        await anyio.lowlevel.checkpoint()
            await anyio.sleep(chance.random() * TICK_SECONDS)

    async with running(tree.root, wait_started=False) as handle:
        tree.witness.tree = tree
        async with anyio.create_task_group() as tasks:
            for sender in range(3):
                tasks.start_soon(send, sender * FOREVER)
            while killed < DISTURBANCES:
                await anyio.sleep(chance.random() * 2 * TICK_SECONDS)
                killed += tree.kill_somebody()
        if seed % 3:
            tree.behave()
            await until(lambda: tree.idle)
            await until(lambda: {node.state for _, node in tree.root.snapshot().iter_flat()} == {State.RUNNING})
            assert tree.handled >= sent
        else:
            handle.stop.set()  # in the middle of it all
            await until(handle.ended.is_set)
    assert (handle.error, tree.witness.wrong, tree.witness.alive) == (None, [], set())
