"""Children on demand: made by a message, retired when their mailbox is empty, restarted while there is work."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ActorDied,
    MailboxClosed,
    RestartIntensity,
    RestartIntensityExceeded,
    State,
    UnknownChild,
)
from tests.supervision.harness import (
    PATIENCE_SECONDS,
    Context,
    question,
    running,
    until,
)
from tests.supervision.workers import Workers
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


@guarantees(
    "A message makes the child; the child ends when its mailbox is empty; the incarnations of the next child for "
    "that key count from 1 again",
    topic="Dynamic supervisors",
)
async def test_a_message_makes_a_child_and_an_empty_mailbox_retires_it() -> None:
    workers = Workers()
    async with running(workers.root):
        assert workers.alive == 0
        workers.hold("a")
        workers.supervisor.deliver_nowait("a", 1)
        await workers.supervisor.deliver("a", 2)
        workers.supervisor.deliver_nowait("b", 3)
        await until(lambda: workers.alive == 1)
        assert [child.name for child in workers.supervisor.snapshot().children] == ["a"]
        workers.release()
        await until(lambda: workers.alive == 0)
        workers.supervisor.deliver_nowait("a", 4)
        await until(lambda: workers.alive == 0)
    assert sorted(workers.got) == [("a", 1), ("a", 2), ("a", 4), ("b", 3)]
    assert workers.observer.of("ended").count(("workers/a", 1, "returned", type(None))) == 2
    assert not workers.observer.of("restarting")


@guarantees("An ask makes a child, too; the name of the child is the key", topic="Dynamic supervisors")
async def test_an_ask_makes_a_child_and_gets_its_answer() -> None:
    workers = Workers()
    async with running(workers.root):
        assert await workers.supervisor.ask("some/key", question("x"), PATIENCE_SECONDS) == "some/key"
        await until(lambda: workers.alive == 0)


@guarantees("`serve_until_empty` gives envelopes up in the same way as `serve`", topic="Giving up after N deliveries")
@guarantees("After a crash only the child of that key restarts", topic="Dynamic supervisors")
async def test_a_crash_is_followed_by_a_restart_for_this_key_alone() -> None:
    workers = Workers(max_deliveries=2)
    async with running(workers.root):
        workers.hold("b")
        for message in (1, "poison", 2):
            workers.supervisor.deliver_nowait("a", message)
        workers.supervisor.deliver_nowait("b", 3)
        await until(lambda: workers.alive == 1)
        workers.release()
        await until(lambda: workers.alive == 0)
    assert set(workers.got) == {("a", 1), ("a", 2), ("b", 3)}
    assert workers.given_up == ["poison"]
    assert workers.observer.reasons("workers/a") == ["crashed", "crashed", "returned"]
    assert workers.observer.reasons("workers/b") == ["returned"]
    assert workers.observer.reasons("workers") == ["stopped"]


@guarantees("While the supervisor does not run, messages wait in the mailboxes", topic="Dynamic supervisors")
async def test_messages_wait_while_it_does_not_run() -> None:
    workers = Workers()
    workers.supervisor.deliver_nowait("a", 1)
    await workers.supervisor.deliver("b", 2)
    assert workers.alive == 2
    assert [child.state for child in workers.supervisor.snapshot().children] == [State.IDLE, State.IDLE]
    async with running(workers.root):
        await until(lambda: workers.alive == 0)
    assert sorted(workers.got) == [("a", 1), ("b", 2)]


@guarantees(
    "A dynamic supervisor counts the restarts of all its children together", topic="Restart intensity and escalation"
)
@guarantees(
    "When the supervisor gives up, running children finish; the next run serves the remaining messages",
    topic="Dynamic supervisors",
)
async def test_a_dynamic_supervisor_gives_up_and_serves_the_rest_in_its_next_run() -> None:
    workers = Workers(intensity=RestartIntensity(2, 60.0), max_deliveries=5)
    for key in "abc":
        workers.supervisor.deliver_nowait(key, "poison")
    workers.hold("d")
    workers.supervisor.deliver_nowait("d", 1)
    context: Context = ActorContext("workers")
    async with anyio.create_task_group() as tasks:

        async def release() -> None:
            await until(lambda: workers.supervisor.snapshot().state is State.STOPPING)
            workers.release()

        tasks.start_soon(release)
        with pytest.raises(RestartIntensityExceeded) as caught:
            await workers.supervisor.run(context)
    assert (caught.value.supervisor, caught.value.last_error) == ("workers", "Boom")
    assert workers.alive == 3
    assert workers.got == [("d", 1)]  # the one at work was let finish
    async with running(workers.root):
        await until(lambda: workers.alive == 0)
        assert workers.root.snapshot().children[0].restarts > 0
    assert workers.given_up == ["poison"] * 3


@guarantees("Below a dynamic supervisor the rest of the path is the key, including slashes", topic="Kill by path")
@guarantees(
    'The observer receives the reason of a kill; the reason of actors below a killed supervisor is "cancelled"',
    topic="Observer",
)
async def test_killing_a_child_and_killing_them_all() -> None:
    workers = Workers()
    async with running(workers.root):
        with pytest.raises(UnknownChild):
            workers.root.kill("workers/a/b")
        workers.hold("a/b", "c")
        workers.supervisor.deliver_nowait("a/b", 1)
        workers.supervisor.deliver_nowait("c", 2)
        await anyio.wait_all_tasks_blocked()
        assert workers.root.kill("workers/a/b", "shot")
        await until(lambda: workers.observer.started("workers/a/b") == 2)
        await anyio.wait_all_tasks_blocked()
        assert workers.root.kill("workers")
        await until(lambda: workers.observer.started("workers/c") == 2)
        workers.release()
        await until(lambda: workers.alive == 0)
    assert sorted(workers.got) == [("a/b", 1), ("c", 2)]
    assert workers.observer.reasons("workers/a/b") == ["shot", "cancelled", "returned"]


@guarantees("An ask raises ActorDied when a dynamic child is killed", topic="Asks")
async def test_an_ask_ends_with_the_child() -> None:
    workers = Workers()
    workers.hold("a")
    async with running(workers.root), anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(ActorDied, match="shot"):
                await workers.supervisor.ask("a", question("x"), PATIENCE_SECONDS)

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert workers.supervisor.kill("a", "shot")
        workers.release()


@guarantees("A stop lets all children finish; then messages are refused", topic="Dynamic supervisors")
async def test_a_stop_lets_all_children_finish() -> None:
    workers = Workers()
    workers.hold(*"abc")
    async with running(workers.root) as tree:
        for key in "abc":
            workers.supervisor.deliver_nowait(key, 1)
            workers.supervisor.deliver_nowait(key, 2)
        await anyio.wait_all_tasks_blocked()
        tree.stop.set()
        await anyio.wait_all_tasks_blocked()
        assert not tree.ended.is_set()
        workers.release()
        await tree.ended.wait()
        assert tree.in_time
    assert sorted(workers.got) == [(key, number) for key in "abc" for number in (1, 2)]
    with pytest.raises(MailboxClosed):
        workers.supervisor.deliver_nowait("a", 3)
    with pytest.raises(MailboxClosed):
        await workers.supervisor.deliver("a", 3)
