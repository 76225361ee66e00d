"""Who is restarted, with whom, in what order, and when a supervisor gives up."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import (
    ChildSpec,
    Restart,
    RestartIntensity,
    State,
    Strategy,
    Supervisor,
)
from tests.supervision.harness import AT_ONCE, Boom, Context, Recorder, puppets, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "Children start in order, each after the previous child is ready. They stop in reverse order, each after the "
    "later child has ended",
    topic="Start and stop",
)
@guarantees("A supervisor is ready when all its children are", topic="Readiness")
async def test_children_start_in_order_when_ready_and_stop_in_reverse() -> None:
    diary: list[str] = []
    gates = {name: anyio.Event() for name in "abc"}

    def slow(name: str) -> ChildSpec:
        async def start(context: Context) -> None:
            diary.append(f"+{name}")
            await gates[name].wait()
            diary.append(f"!{name}")
            context.ready()
            await context.wait_stopping()
            await anyio.lowlevel.checkpoint()
            diary.append(f"-{name}")

        return ChildSpec(name, start)

    root = Supervisor("root", [slow(name) for name in "abc"])
    async with running(root, wait_started=False):
        for index, name in enumerate("abc"):
            await anyio.wait_all_tasks_blocked()
            assert diary[-1] == f"+{name}"
            states = [node.state for node in root.snapshot().children]
            assert states == [State.RUNNING] * index + [State.STARTING] + [State.IDLE] * (2 - index)
            assert root.snapshot().state is State.STARTING
            gates[name].set()
        await until(lambda: root.snapshot().state is State.RUNNING)
    assert diary == ["+a", "!a", "+b", "!b", "+c", "!c", "-c", "-b", "-a"]
    assert root.snapshot().state is State.IDLE


@guarantees(
    "A permanent child always restarts; a transient child restarts after a crash or a kill; a temporary child never"
    " restarts",
    topic="Restart kinds",
)
@guarantees("A child that ended for good can't be killed", topic="Kill by path")
@guarantees(
    "`incarnation` counts all attempts; `restarts` counts the attempts that followed another attempt in the same "
    "run of the supervisor, also after a return",
    topic="Snapshot",
)
@pytest.mark.parametrize(
    ("restart", "after_return", "after_crash"),
    [(Restart.PERMANENT, True, True), (Restart.TRANSIENT, False, True), (Restart.TEMPORARY, False, False)],
)
@pytest.mark.parametrize("how", ["return", "crash", "kill"])
async def test_whether_a_child_is_restarted(restart: Restart, after_return: bool, after_crash: bool, how: str) -> None:
    diary, (child, other) = puppets("ab")
    root = Supervisor("root", [child.spec(restart=restart), other.spec()], backoff=AT_ONCE)
    async with running(root):
        if how == "return":
            child.leave()
        elif how == "crash":
            child.crash()
        else:
            assert root.kill("a")
        expected = after_return if how == "return" else after_crash
        await until(lambda: "-a" in diary and root.snapshot().children[0].state in (State.RUNNING, State.ENDED))
        await anyio.wait_all_tasks_blocked()
        node = root.snapshot().children[0]
        assert node.state is (State.RUNNING if expected else State.ENDED)
        assert (node.incarnation, node.restarts) == ((2, 1) if expected else (1, 0))
        assert node.last_error == {"return": None, "crash": "Boom: a", "kill": "killed"}[how]
        assert other.attempts == 1
        assert root.kill("a") is expected


@guarantees("After a crash before ready the child restarts, and the next child waits", topic="Readiness")
async def test_a_crash_before_ready_is_retried_and_the_next_child_waits() -> None:
    diary, (first, second) = puppets("ab")
    first.crash_on_start = 3
    observer = Recorder()
    root = Supervisor("root", [first.spec(), second.spec()], backoff=AT_ONCE, observer=observer)
    async with running(root):
        assert diary == ["+a", "-a"] * 3 + ["+a", "+b"]
        assert root.snapshot().children[0].restarts == 3
    assert observer.of("restarting") == [("a", 0.0)] * 3


@guarantees("A child that ended for good before it was ready delays no sibling", topic="Readiness")
@pytest.mark.parametrize("restart", [Restart.TEMPORARY, Restart.TRANSIENT])
async def test_a_child_that_ends_for_good_before_ready_delays_no_sibling(restart: Restart) -> None:
    async def start(context: Context) -> None:
        if restart is Restart.TEMPORARY:
            raise Boom

    _, (second,) = puppets("b")
    root = Supervisor("root", [ChildSpec("a", start, restart=restart), second.spec()])
    async with running(root):
        assert second.attempts == 1
        assert root.snapshot().children[0].state is State.ENDED


@guarantees("one_for_one: only the child that failed restarts", topic="Strategies")
async def test_one_for_one_restarts_the_child_alone() -> None:
    diary, (_, b, _) = children = puppets("abc")
    root = Supervisor("root", [child.spec() for child in children[1]], backoff=AT_ONCE)
    async with running(root):
        b.crash()
        await until(lambda: b.attempts == 2)
        assert diary == ["+a", "+b", "+c", "-b", "+b"]


@guarantees("one_for_all: all children stop in reverse order, and then start in order", topic="Strategies")
@guarantees("An observer is notified of each restart and its delay, once for a group", topic="Observer")
async def test_one_for_all_restarts_all_in_order() -> None:
    diary, children = puppets("abc")
    observer = Recorder()
    root = Supervisor(
        "root",
        [child.spec() for child in children],
        strategy=Strategy.ONE_FOR_ALL,
        backoff=AT_ONCE,
        observer=observer,
    )
    async with running(root):
        children[1].crash()
        await until(lambda: children[2].attempts == 2)
        assert diary == ["+a", "+b", "+c", "-b", "-c", "-a", "+a", "+b", "+c"]
        assert [node.restarts for node in root.snapshot().children] == [1, 1, 1]
    assert observer.of("restarting") == [("b", 0.0)]
    assert observer.reasons("a") == ["stopped", "stopped"]


@guarantees("rest_for_one: the child that failed and the children after it restart", topic="Strategies")
async def test_rest_for_one_restarts_the_child_and_those_after_it() -> None:
    diary, children = puppets("abcd")
    specs = [child.spec() for child in children]
    root = Supervisor("root", specs, strategy=Strategy.REST_FOR_ONE, backoff=AT_ONCE)
    async with running(root):
        children[1].crash()
        await until(lambda: children[3].attempts == 2)
        assert diary == ["+a", "+b", "+c", "+d", "-b", "-d", "-c", "+b", "+c", "+d"]


@guarantees("A group starts over when a member crashes during the start", topic="Strategies")
async def test_a_group_that_crashes_during_its_start_starts_over() -> None:
    diary, children = puppets("abc")
    children[1].crash_on_start = 2
    specs = [child.spec() for child in children]
    root = Supervisor("root", specs, strategy=Strategy.ONE_FOR_ALL, backoff=AT_ONCE)
    async with running(root):
        assert diary == ["+a", "+b", "-b", "-a"] * 2 + ["+a", "+b", "+c"]


@guarantees("A crash of an earlier child widens a rest_for_one restart that is in progress", topic="Strategies")
async def test_a_crash_of_an_earlier_child_widens_a_running_restart() -> None:
    diary, children = puppets("ab")
    held = anyio.Event()

    async def slow_to_stop(context: Context) -> None:
        diary.append("+c")
        context.ready()
        await context.wait_stopping()
        await held.wait()
        diary.append("-c")

    specs = [*(child.spec() for child in children), ChildSpec("c", slow_to_stop)]
    root = Supervisor("root", specs, strategy=Strategy.REST_FOR_ONE, backoff=AT_ONCE)
    async with running(root):
        children[1].crash()
        await until(lambda: root.snapshot().children[2].state is State.STOPPING)
        children[0].crash()
        await until(lambda: "-a" in diary)
        held.set()
        await until(lambda: diary[-1] == "+c")
        assert diary == ["+a", "+b", "+c", "-b", "-a", "-c", "+a", "+b", "+c"]


@guarantees("When a transient child returns, no sibling restarts, also under one_for_all", topic="Restart kinds")
@guarantees(
    "A group restart does not restart temporary children, but starts transient children that had returned",
    topic="Restart kinds",
)
async def test_a_group_restart_drops_temporary_and_restarts_transient_children() -> None:
    _, (a, b, c) = puppets("abc")
    specs = [a.spec(), b.spec(restart=Restart.TEMPORARY), c.spec(restart=Restart.TRANSIENT)]
    root = Supervisor("root", specs, strategy=Strategy.ONE_FOR_ALL, backoff=AT_ONCE)
    async with running(root):
        c.leave()
        await until(lambda: root.snapshot().children[2].state is State.ENDED)
        a.crash()
        await until(lambda: c.attempts == 2)
        await anyio.wait_all_tasks_blocked()
        assert (a.attempts, b.attempts) == (2, 1)
        assert root.snapshot().children[1].state is State.ENDED


@guarantees(
    "A group restart counts once; a further crash of a child that already restarts does not count",
    topic="Restart intensity and escalation",
)
async def test_a_crash_of_a_child_that_already_restarts_is_not_counted() -> None:
    _, (a, b) = puppets("ab")
    held = anyio.Event()

    async def slow_to_stop(context: Context) -> None:
        context.ready()
        await context.wait_stopping()
        await held.wait()

    root = Supervisor(
        "root",
        [a.spec(), b.spec(), ChildSpec("c", slow_to_stop)],
        strategy=Strategy.ONE_FOR_ALL,
        backoff=AT_ONCE,
        intensity=RestartIntensity(1, 60.0),
    )
    async with running(root) as tree:
        b.crash()
        await until(lambda: root.snapshot().children[2].state is State.STOPPING)
        a.crash()
        await until(lambda: root.snapshot().children[0].state is not State.RUNNING)
        held.set()
        await until(lambda: root.snapshot().children[2].incarnation == 2)
        assert not tree.ended.is_set()
        assert [node.restarts for node in root.snapshot().children] == [1, 1, 1]
