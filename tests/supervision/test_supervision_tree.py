"""Trees: paths, kills, pictures, and the run of a whole tree."""

from __future__ import annotations

import anyio
import pytest

from bcs.supervision import (
    ActorContext,
    ChildSpec,
    Envelope,
    Mailbox,
    MailboxClosed,
    State,
    Supervisor,
    UnknownChild,
    serve,
)
from tests.supervision.harness import AT_ONCE, Context, Puppet, Recorder, fail_on_max_deliveries, running, until
from tests.support.guarantees import guarantees

pytestmark = pytest.mark.anyio


class Forest:
    """root: a, mid (b, low (c))."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.a, self.b, self.c = (Puppet(name, self.diary) for name in "abc")
        self.observer = Recorder()
        low = Supervisor("low", [self.c.spec()], backoff=AT_ONCE)
        mid = Supervisor("mid", [self.b.spec(), ChildSpec("low", low.run)], backoff=AT_ONCE)
        children = [self.a.spec(), ChildSpec("mid", mid.run)]
        self.root = Supervisor("root", children, backoff=AT_ONCE, observer=self.observer)


@guarantees("A path consists of the names below the root", topic="Nested trees")
@guarantees("A snapshot has every node with kind, state and path", topic="Snapshot")
@guarantees(
    "An observer is notified of starts and ends, with path and reason; a supervisor without an observer uses the "
    "observer of its parent",
    topic="Observer",
)
async def test_paths_lead_from_below_the_root_to_every_node() -> None:
    forest = Forest()
    async with running(forest.root):
        flat = dict(forest.root.snapshot().iter_flat())
        assert list(flat) == ["a", "mid", "mid/b", "mid/low", "mid/low/c"]
        assert {path: node.kind for path, node in flat.items()} == {
            "a": "actor",
            "mid": "supervisor",
            "mid/b": "actor",
            "mid/low": "supervisor",
            "mid/low/c": "actor",
        }
        assert all(node.state is State.RUNNING for node in flat.values())
    # A supervisor that nothing was said to about an observer tells its parent's.
    assert [path for path, _ in forest.observer.of("started")] == list(flat)
    assert {node.state for _, node in forest.root.snapshot().iter_flat()} == {State.IDLE}


@guarantees("A kill deep down leaves the rest of the tree alone", topic="Nested trees")
@guarantees("A kill ends one attempt; a second kill of the same attempt returns False", topic="Kill by path")
@guarantees(
    "An observer is notified of starts and ends, with path and reason; a supervisor without an observer uses the "
    "observer of its parent",
    topic="Observer",
)
async def test_kill_by_path_hits_one_actor() -> None:
    forest = Forest()
    async with running(forest.root):
        assert forest.root.kill("mid/low/c", "shot")
        assert not forest.root.kill("mid/low/c")
        await until(lambda: forest.c.attempts == 2)
        assert (forest.a.attempts, forest.b.attempts) == (1, 1)
    assert forest.observer.reasons("mid/low/c") == ["shot", "stopped"]
    assert forest.observer.reasons("mid/low") == ["stopped"]


@guarantees("A supervisor that is restarted starts all its children again", topic="Nested trees")
@guarantees("A kill of a supervisor ends all actors below it, and all of them restart", topic="Kill by path")
async def test_killing_a_supervisor_restarts_everything_below_it() -> None:
    forest = Forest()
    async with running(forest.root):
        assert forest.root.kill("mid")
        await until(lambda: forest.c.attempts == 2 and forest.b.attempts == 2)
        await until(lambda: dict(forest.root.snapshot().iter_flat())["mid"].state is State.RUNNING)
        assert forest.a.attempts == 1
        nodes = dict(forest.root.snapshot().iter_flat())
        assert [nodes[path].incarnation for path in ("mid", "mid/low", "mid/low/c")] == [2, 2, 2]
    assert forest.observer.reasons("mid") == ["killed", "stopped"]
    assert forest.observer.reasons("mid/low/c") == ["cancelled", "stopped"]


@guarantees(
    "A kill of an unknown path raises UnknownChild; a kill of a known child that does not run returns False",
    topic="Kill by path",
)
@pytest.mark.parametrize("path", ["", "x", "a/x", "a/", "mid/", "mid/x", "mid/low/x", "mid/low/c/x"])
async def test_an_unknown_path_is_an_error(path: str) -> None:
    forest = Forest()
    with pytest.raises(UnknownChild):
        forest.root.kill(path)
    assert not forest.root.kill("mid/low/c")  # known, but nothing runs


@guarantees("Two children of a supervisor can't share a mailbox or a supervisor", topic="Mailboxes")
@guarantees('A name is unique among siblings, not empty, and has no "/"', topic="Nested trees")
async def test_children_share_no_name_mailbox_or_supervisor() -> None:
    puppet = Puppet("a")
    mailbox: Mailbox[str] = Mailbox("m", 1)
    with pytest.raises(ValueError, match="share"):
        Supervisor("root", [puppet.spec(), puppet.spec()])
    with pytest.raises(ValueError, match="share"):
        Supervisor("root", [ChildSpec(name, puppet.start, mailbox=mailbox) for name in "ab"])
    below = Supervisor("below", [])
    with pytest.raises(ValueError, match="share"):
        Supervisor("root", [ChildSpec(name, below.run) for name in "ab"])
    for name in ("", "a/b"):
        with pytest.raises(ValueError, match="name"):
            Supervisor("root", [ChildSpec(name, puppet.start)])


@guarantees("A supervisor runs once at a time, and may run again after its end", topic="Start and stop")
@guarantees(
    "`incarnation` counts all attempts; `restarts` counts the attempts that followed another attempt in the same "
    "run of the supervisor, also after a return",
    topic="Snapshot",
)
async def test_a_supervisor_runs_once_at_a_time_and_again_after_its_end() -> None:
    puppet = Puppet("a")
    root = Supervisor("root", [puppet.spec()])
    for attempt in (1, 2):
        context: Context = ActorContext("root", attempt)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(root.run, context)
            await until(lambda: context.ready_at is not None)  # noqa: B023 - awaited at once
            with pytest.raises(RuntimeError, match="already running"):
                await root.run(context)
            context.request_stop()
    assert puppet.diary == ["+a", "-a"] * 2
    node = root.snapshot().children[0]
    assert (node.incarnation, node.restarts) == (2, 0)


@guarantees(
    "A snapshot has each mailbox's depth (queued and unacked envelopes), its capacity, the age of its oldest "
    "envelope, and the actor's busy time",
    topic="Snapshot",
)
async def test_a_snapshot_shows_what_is_in_a_mailbox() -> None:
    mailbox: Mailbox[str] = Mailbox("m", 7)
    gate = anyio.Event()

    async def handle(envelopes: list[Envelope[str]]) -> None:
        await gate.wait()

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=fail_on_max_deliveries)

    root = Supervisor("root", [ChildSpec("m", start, mailbox=mailbox)])
    for text in "abc":
        mailbox.send_nowait(text)
    async with running(root):
        await until(lambda: root.snapshot().children[0].busy_seconds > 0)
        node = root.snapshot().children[0]
        assert (node.mailbox_depth, node.mailbox_capacity) == (3, 7)
        assert node.oldest_message_seconds >= node.busy_seconds
        gate.set()

        def at_rest() -> bool:
            # At once: the mailbox is empty before the actor has become idle, and a clock that stands still for a
            # millisecond makes a busy one look idle.
            node = root.snapshot().children[0]
            return (node.mailbox_depth, node.oldest_message_seconds, node.busy_seconds) == (0, 0.0, 0.0)

        await until(at_rest)


@guarantees("A stop lets the children empty their mailboxes, and then closes the mailboxes", topic="Start and stop")
@guarantees("A stop reaches the actors of all levels", topic="Nested trees")
async def test_a_stop_drains_the_mailboxes_and_then_closes_them() -> None:
    mailbox: Mailbox[int] = Mailbox("m", 50)
    got: list[int] = []

    async def handle(envelopes: list[Envelope[int]]) -> None:
        await anyio.lowlevel.checkpoint()
        got.extend(envelope.message for envelope in envelopes)

    async def start(context: Context) -> None:
        await serve(context, handle, on_max_deliveries=fail_on_max_deliveries)

    inner = Supervisor("in", [ChildSpec("m", start, mailbox=mailbox)])
    async with running(Supervisor("root", [ChildSpec("in", inner.run)])) as tree:
        for number in range(50):
            mailbox.send_nowait(number)
        tree.stop.set()
    assert got == list(range(50))
    assert tree.in_time
    with pytest.raises(MailboxClosed):
        mailbox.send_nowait(1)


@guarantees("A stop before the start starts nothing", topic="Start and stop")
async def test_a_stop_before_the_start_starts_nothing() -> None:
    puppet = Puppet("a")
    async with running(Supervisor("root", [puppet.spec()]), wait_started=False) as tree:
        tree.stop.set()
    assert (puppet.attempts, tree.in_time, tree.error) == (0, True, None)


@guarantees(
    "A stop while a child starts or backs off ends the tree, and starts no further child", topic="Start and stop"
)
async def test_a_stop_while_a_child_starts_or_backs_off_ends_at_once() -> None:
    async def never_ready(context: Context) -> None:
        await context.wait_stopping()

    crashing, after = Puppet("c"), Puppet("z")
    crashing.crash_on_start = 1
    for spec in (ChildSpec("n", never_ready), crashing.spec()):
        root = Supervisor("root", [spec, after.spec()])
        async with running(root, wait_started=False) as tree:
            await until(lambda: root.snapshot().children[0].incarnation == 1)  # noqa: B023 - awaited at once
            await anyio.wait_all_tasks_blocked()
            tree.stop.set()
            await until(tree.ended.is_set)
        assert tree.in_time
    assert after.attempts == 0
