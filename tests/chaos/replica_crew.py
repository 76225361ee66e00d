"""Processes that share a consumer group and a store, and events that keep coming while they come and go."""

import itertools
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio

from bcs.config.pipelines import load_pipelines
from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import HOST
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from tests.chaos.history import History, still_to_run
from tests.chaos.replica_ledger import DurableFirst, GroupLedger, Partition
from tests.chaos.replica_tap import Hold, between
from tests.chaos.replica_wire import GroupConversation
from tests.chaos.servers import killed_at_the_end
from tests.support.kafka import Platform, create_platform_topics
from tests.support.laws import LAW
from tests.support.ports import held_port
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

SETTLED_SECONDS = 60
CHUNK = 25
# So many events are under way whenever somebody comes or goes: the next ones are told as these become durable.
UNDER_WAY = 200
ENVIRONMENT = {
    # Tansu answers who joins after a second.
    "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": 1.5,
    "BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS": 0.2,
    "BCS_INTAKE_COMMIT_INTERVAL_SECONDS": 0.3,
}


class Crew:
    """The replicas, the events, and what is seen of both from outside.

    :param replicas: those at work.
    :param sent: how many events were told.
    """

    def __init__(self, directory: Path, history: History, kafka: str, redis_url: str, name: str) -> None:
        self.replicas: list[BcsProcess] = []
        self.sent = 0
        self.ledger = GroupLedger(name)
        self.platform = Platform(kafka)
        self._directory, self._history, self._kafka, self._redis_url = directory, history, kafka, redis_url
        self._numbers = itertools.count(1)
        self._launched: list[BcsProcess] = []
        self._held: tuple[BcsProcess, Hold] | None = None
        self._gateway = RedisGateway(
            redis_url, max_connections=4, deadline_seconds=5, breaker_failures=1_000_000, breaker_open_seconds=0.01
        )
        self._store = RedisStateStore(self._gateway, law=LAW, key_prefix=f"{name}:", ttl_seconds=3600)
        self.durable = DurableFirst(self._store)

    def conversation(self, port: int) -> GroupConversation:
        """What a client says to the broker, overheard."""
        return GroupConversation(self.ledger, port, self._before_commit)

    async def _before_commit(self, port: int, offsets: dict[Partition, int]) -> None:
        await self.durable.check(offsets)
        if self._held and port in ports_of(self._held[0].process.pid):
            (_, hold), self._held = self._held, None
            await hold.wait(port)

    def hold_commit(self, replica: BcsProcess, hold: Hold) -> None:
        """Hold back the next commit of a replica on its way to the broker."""
        self._held = replica, hold

    async def join(self, redis_url: str | None = None) -> BcsProcess:
        """One more, at work when this returns."""
        number, name = next(self._numbers), self.ledger.group
        names = {"BCS_REDIS_KEY_PREFIX": f"{name}:", "BCS_KAFKA_CONSUMER_GROUP_ID": name}
        replica = serve(
            self._directory / f"replica-{number}",
            redis_url or self._redis_url,
            self._kafka,
            **{**ENVIRONMENT, **names, "BCS_INSTANCE_NAME": f"replica-{number}"},
        )
        self._launched.append(replica)
        await self.at_work(replica)
        self.replicas.append(replica)
        return replica

    async def at_work(self, replica: BcsProcess) -> None:
        """Wait until a replica has partitions."""
        await wait_until(partial(self.partitions_of, replica), SETTLED_SECONDS, description="it has partitions")

    async def settled(self) -> None:
        """Wait until the group has nothing to settle."""
        await wait_until(lambda: all(map(self.partitions_of, self.replicas)), SETTLED_SECONDS)

    def partitions_of(self, replica: BcsProcess) -> frozenset[Partition]:
        """What the group has given to a replica."""
        return frozenset(one for port in self._ports_of(replica) for one in self.ledger.owned()[port])

    def in_hand(self, replica: BcsProcess) -> int:
        """How many messages a replica has read and not committed, at least."""
        return sum(self.ledger.in_hand(port) for port in self._ports_of(replica))

    def _ports_of(self, replica: BcsProcess) -> set[int]:
        assert replica.process.poll() is None, replica.log.read_text()
        owned = self.ledger.owned()
        return owned.keys() & ports_of(replica.process.pid) if owned else set()

    async def leave(self, replica: BcsProcess) -> None:
        """SIGTERM one, and wait until it has left in order."""
        self.replicas.remove(replica)
        await assert_no_actor_crashed(replica)
        replica.signal(signal.SIGTERM)
        assert await replica.ended() == 0, replica.log.read_text()

    async def kill(self, replica: BcsProcess) -> None:
        """Kill -9 one."""
        self.replicas.remove(replica)
        replica.signal(signal.SIGKILL)
        await replica.ended()

    async def publish(self, gate: Callable[[], float], enough: Callable[[], bool] = lambda: False) -> None:
        """Tell all events: no more than the gate lets through, and few before the earlier ones are durable.

        :param enough: whether the rest need not be told; then the history ends there.
        """
        told = self._history.told
        for start in range(0, len(told), CHUNK):
            if enough():
                self._history.told = told[: self.sent]
                return
            await wait_until(lambda start=start: start <= min(gate(), self.durable.behind + UNDER_WAY), SETTLED_SECONDS)  # type: ignore[misc]
            chunk = told[start : start + CHUNK]
            for one, where in zip(chunk, await self.platform.send(*(told.event for told in chunk)), strict=True):
                partition = where.topic, where.partition
                self.durable.sent(one, partition, where.offset)
            self.sent += len(chunk)

    async def assert_nothing_lost(self) -> None:
        """The state, and what every replica answers, is that of the model; nothing was committed out of turn."""
        await wait_until(lambda: self.platform.caught_up(self.ledger.group), SETTLED_SECONDS)
        await self.durable.check_all()
        assert self.durable.behind == self.sent, "every event was looked at before it was committed"
        self.ledger.committed()
        definitions = load_pipelines(None)
        for batch, state in self._history.model().items():
            assert await self._store.state(batch) == state
            for replica in self.replicas:
                async with Orchestrator(replica.base) as orchestrator:
                    assert await orchestrator.to_run(batch) == still_to_run(definitions, "ai_feedback", state)
        for topic in topics.CONSUMED:
            assert await self.platform.messages(topics.dead_letter_topic(topic)) == []

    async def stop(self) -> None:
        """Let all that are left stop in order."""
        async with anyio.create_task_group() as group:
            for replica in self.replicas.copy():
                group.start_soon(self.leave, replica)

    async def end(self) -> None:
        """End what is left if something went wrong."""
        for replica in self._launched:
            replica.__exit__()
        await self._gateway.aclose()


async def assert_no_actor_crashed(replica: BcsProcess) -> None:
    async with Orchestrator(replica.base) as orchestrator:
        restarts = [one for one in await orchestrator.samples() if one[0] == "bcs_actor_restarts_total" and one[2]]
    assert restarts == []


def ports_of(process_id: int) -> set[int]:
    """The local ports of a process's TCP connections (Linux)."""
    sockets = set()
    for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    connections = [line.split() for line in Path(f"/proc/{process_id}/net/tcp").read_text().splitlines()[1:]]
    return {int(one[1].rpartition(":")[2], 16) for one in connections if f"socket:[{one[9]}]" in sockets}


@asynccontextmanager
async def crew(directory: Path, history: History, redis_url: str, name: str) -> AsyncIterator[Crew]:
    """A crew of nobody yet; at the end all that are left stop in order."""
    port = held_port()
    with killed_at_the_end(embedded.kafka(directory / "kafka", advertised_port=port)) as broker:
        hands = Crew(directory, history, f"{HOST}:{port}", redis_url, name)
        async with between(port, broker.port, hands.conversation):
            await create_platform_topics(f"{HOST}:{port}")
            async with hands.platform:
                try:
                    yield hands
                    await hands.stop()
                finally:
                    with anyio.CancelScope(shield=True):
                        await hands.end()
