"""A failover behind one address: the connections follow it, and nothing that another Redis has is trusted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.archive_queue import ArchiveQueue
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import MakeGateway, MakeStore
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import AT_US, consumed
from tests.support.redis_queues import archive_queue
from tests.support.redis_servers import redis_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

CONNECTIONS = 3
FIRST, SECOND = 0, 1
BEGUN: list[Fact] = [
    EssaysRegistered(("e1",), 1, AT_US),
    EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US),
]
UNDONE: list[Fact] = [EssayPhaseEnded("spellcheck", "e1", Outcome.FAILED, AT_US + 1)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EmbeddedServer]]:
    with ExitStack() as stack:
        names = ("first", "second")
        yield [stack.enter_context(redis_server(tmp_path_factory.mktemp(name))) for name in names]


class Address:
    """An address that leads to one of two masters. Existing connections stay where they are."""

    def __init__(self, proxy: FaultProxy, servers: list[EmbeddedServer], controls: list[Redis]) -> None:
        self.proxy = proxy
        self.url = f"redis://{proxy.address}"
        self.controls = controls
        self._servers = servers

    def lead_to(self, server: int) -> None:
        self.proxy.target = (HOST, self._servers[server].port)

    async def fail_over(self) -> None:
        """Fail over to the second server. The first server is demoted, and still answers its connections."""
        await self.demote(FIRST)
        self.lead_to(SECOND)

    async def demote(self, server: int) -> None:
        """Make it a replica of a server that is not there."""
        await self.controls[server].replicaof(HOST, 1)

    async def promote(self, server: int) -> None:
        await self.controls[server].replicaof("NO", "ONE")

    async def answering(self, send: Callable[..., Awaitable[list[Any]]]) -> int:
        """Which server answers."""
        [[_, port]] = await send(("CONFIG", "GET", "port"))
        return [server.port for server in self._servers].index(int(port))


@pytest.fixture
async def address(servers: list[EmbeddedServer]) -> AsyncIterator[Address]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(HOST, servers[FIRST].port))
        controls = [await stack.enter_async_context(Redis.from_url(f"redis://{one.address}")) for one in servers]
        address = Address(proxy, servers, controls)
        for server in (FIRST, SECOND):
            await address.promote(server)
            await controls[server].flushall()
        yield address


def check_every(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("bcs.storage.redis.identity.CHECK_SECONDS", seconds)


async def all_answering(gateway: RedisGateway, address: Address) -> set[int]:
    """Which servers answer on as many connections as there may be, and on the one in common."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(gateway.session()) for _ in range(CONNECTIONS)]
        answering = {await address.answering(session.call) for session in sessions}
    return answering | {await address.answering(gateway.call_multiplexed)}


async def test_a_demoted_master_is_left_without_a_write(
    address: Address, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every(monkeypatch, 0.05)
    gateway = make_gateway(address.url, deadline=5)
    for send in (gateway.call_multiplexed, gateway.call):
        assert await address.answering(send) == FIRST
    await address.fail_over()

    async def is_left() -> bool:
        return await address.answering(gateway.call_multiplexed) == await address.answering(gateway.call) == SECOND

    await wait_until(is_left, 3, ignoring=(StoreUnavailable,))


@pytest.mark.parametrize("writes", ["on a connection of its own", "on the connection in common"])
async def test_a_refused_write_renews_all_connections(
    address: Address, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    check_every(monkeypatch, 1000)
    gateway = make_gateway(address.url, deadline=5, connections=CONNECTIONS)
    assert await all_answering(gateway, address) == {FIRST}
    await address.fail_over()
    assert await all_answering(gateway, address) == {FIRST}
    write = gateway.call_multiplexed if "common" in writes else gateway.call
    with pytest.raises(StoreUnavailable, match="replica"):
        await write(("MULTI",), ("SET", "key", "value"), ("EXEC",))
    assert await all_answering(gateway, address) == {SECOND}


async def test_a_connection_that_finds_another_server_renews_all_others(
    address: Address, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every(monkeypatch, 1000)
    gateway = make_gateway(address.url, deadline=5, connections=CONNECTIONS)
    assert await address.answering(gateway.call_multiplexed) == FIRST
    address.lead_to(SECOND)
    assert await address.answering(gateway.call_multiplexed) == FIRST, "it is connected"
    assert await address.answering(gateway.call) == SECOND, "the first connection of its own"
    assert await address.answering(gateway.call_multiplexed) == SECOND


async def test_a_replica_at_the_address_is_refused_and_named(address: Address, make_gateway: MakeGateway) -> None:
    await address.demote(FIRST)
    gateway = make_gateway(address.url, deadline=5)
    for ask in (lambda: gateway.call(("GET", "x")), lambda: gateway.call_multiplexed(("GET", "x")), gateway.ping):
        with pytest.raises(StoreUnavailable, match="it is a replica"):
            await ask()
    await address.promote(FIRST)
    assert await all_answering(gateway, address) == {FIRST}


async def test_a_master_that_gets_a_replica_keeps_its_connections(
    address: Address, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history of data has another id from then on."""
    check_every(monkeypatch, 0)
    gateway = make_gateway(address.url, deadline=5)
    before = await gateway.call_multiplexed(("CLIENT", "ID"))
    identity = before.peer.identity
    await address.controls[SECOND].replicaof(*address.proxy.target)

    async def is_noticed() -> bool:
        replies = await gateway.call_multiplexed(("CLIENT", "ID"))
        assert replies == before
        return replies.peer.identity != identity

    await wait_until(is_noticed)


@pytest.fixture
def store(
    address: Address, make_gateway: MakeGateway, in_redis: MakeStore, archive: PostgresArchive
) -> RedisStateStore:
    return in_redis(make_gateway(address.url, deadline=5), backfill=ArchiveBackfill(archive, nothing_waits))


async def nothing_waits(_batch_id: str) -> int:
    return 0


@pytest.mark.parametrize("meanwhile", ["demoted", "cut off"])
async def test_a_server_that_was_left_is_not_trusted_when_it_is_back(
    address: Address,
    store: RedisStateStore,
    archive: PostgresArchive,
    monkeypatch: pytest.MonkeyPatch,
    batch: str,
    meanwhile: str,
) -> None:
    """A copy with a stamp of the first server lacks facts that the second server got meanwhile."""
    check_every(monkeypatch, 1000)
    await store.commit(batch, delta_of(BEGUN))
    assert (await store.summary(batch)).complete("spellcheck")
    if meanwhile == "demoted":
        await address.demote(FIRST)
    await lead_elsewhere(address, SECOND)
    await archive.add_states({batch: delta_of(UNDONE)})
    await in_the_end(lambda: store.commit(batch, delta_of(UNDONE)))
    assert not (await store.summary(batch)).complete("spellcheck")
    await address.promote(FIRST)
    await lead_elsewhere(address, FIRST)
    assert not (await in_the_end(lambda: store.summary(batch))).complete("spellcheck")
    assert await address.controls[FIRST].keys(), "it has what it had"


async def lead_elsewhere(address: Address, server: int) -> None:
    address.lead_to(server)
    await address.proxy.cut()


async def in_the_end(do: Callable[[], Awaitable[Any]]) -> Any:
    """Do it, once the connections that were cut have been found out."""

    async def done() -> list[Any]:
        return [await do()]

    [outcome] = await wait_until(done, ignoring=(StoreUnavailable,))
    return outcome


async def test_a_server_demoted_and_promoted_again_gets_a_new_identity(
    address: Address, store: RedisStateStore, archive: PostgresArchive, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    check_every(monkeypatch, 0)
    await store.commit(batch, delta_of(BEGUN))
    assert (await store.summary(batch)).complete("spellcheck")
    await address.demote(FIRST)
    await archive.add_states({batch: delta_of(UNDONE)})  # by another replica, which has written it to the second server
    await address.promote(FIRST)
    assert not (await store.summary(batch)).complete("spellcheck")
    assert (await store.state(batch)).essay_marks["spellcheck"]["e1"].outcome is Outcome.FAILED


async def test_facts_that_a_failover_lost_while_they_wait_for_the_archive_are_waited_for(
    address: Address,
    make_gateway: MakeGateway,
    in_redis: MakeStore,
    archive: PostgresArchive,
    redis_key_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    batch: str,
) -> None:
    """In a cluster the queue is on a server that may live on, while the batch's own server loses what came last."""
    check_every(monkeypatch, 1000)
    queue = archive_queue(make_gateway(address.url, deadline=5), redis_key_prefix)
    backfill = ArchiveBackfill(archive, queue.waiting, oldest_seconds=queue.oldest_seconds)
    await archive.add_states({batch: delta_of(BEGUN)})
    store = in_redis(make_gateway(address.url, deadline=5), backfill=backfill)
    await store.commit(batch, delta_of(BEGUN))
    assert (await store.summary(batch)).complete("spellcheck")
    copies = {key: await address.controls[FIRST].dump(key) for key in await address.controls[FIRST].keys("*}*facts")}
    await queue.append([consumed(batch, *UNDONE)])
    await wait_until(lambda: has_waited(queue, batch))
    address.lead_to(SECOND)
    for key, copy in copies.items():
        await address.controls[SECOND].restore(key, 0, copy or b"")
    store = in_redis(make_gateway(address.url, deadline=5), backfill=backfill)
    with pytest.raises(StoreUnavailable, match="that this Redis may lack"):
        await store.summary(batch)
    await archive.add_states({batch: delta_of(UNDONE)})
    await queue.ack(await queue.lease(9))
    assert not (await store.summary(batch)).complete("spellcheck")


async def has_waited(queue: ArchiveQueue, batch: str) -> bool:
    return await queue.oldest_seconds(batch) > 0
