"""What one service stands on: servers of its own, the platform around it, and a view of its store from outside."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import HOST
from bcs.storage.ports import StateStore
from bcs.storage.redis.batch_store import RedisStateStore
from tests.chaos.redis_servers import ON_A_CLUSTER, ChaosRedis, chaos_redis
from tests.chaos.servers import killed_at_the_end
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform, create_platform_topics
from tests.support.laws import LAW
from tests.support.ports import held_port
from tests.support.service import BcsProcess, serve


@dataclass(frozen=True)
class Ground:
    """The servers, and who looks at them.

    :param name: of the group and of the keys.
    :param line: where Kafka can be cut off.
    """

    directory: Path
    name: str
    redis: ChaosRedis
    kafka: str
    line: FaultProxy
    platform: Platform
    store: StateStore

    def serve(self, process: str, **environment: object) -> BcsProcess:
        """A process of the service.

        :param process: its name.
        """
        names = {"BCS_REDIS_KEY_PREFIX": f"{self.name}:", "BCS_KAFKA_CONSUMER_GROUP_ID": self.name}
        return serve(self.directory / process, self.redis.url, self.kafka, **names, **environment)


@asynccontextmanager
async def prepared(
    directory: Path, name: str, *, cuttable: bool = False, on_a_cluster: bool = ON_A_CLUSTER
) -> AsyncIterator[Ground]:
    """Servers that run.

    :param cuttable: whether Kafka stands behind its line; else everybody talks to it directly.
    :param on_a_cluster: whether Redis is a cluster.
    """
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(chaos_redis(directory, on_a_cluster=on_a_cluster))
        port = held_port()
        kafka_server = embedded.kafka(directory / "kafka", advertised_port=port if cuttable else None)
        broker = stack.enter_context(killed_at_the_end(kafka_server))
        line = await stack.enter_async_context(FaultProxy(HOST, broker.port, port))
        kafka = line.address if cuttable else broker.address
        await create_platform_topics(kafka)
        nodes = redis.nodes()
        stack.push_async_callback(nodes.aclose)
        # With "everysec" a write waits in memory while an fsync is under way, and is acknowledged all the same: a kill
        # takes it along. Without, it is written first; nobody pulls the plug here.
        for node in await nodes.all_nodes():
            await node.call(("CONFIG", "SET", "appendfsync", "no"))
        platform = await stack.enter_async_context(Platform(kafka))
        store = RedisStateStore(nodes, law=LAW, key_prefix=f"{name}:", ttl_seconds=604_800)
        yield Ground(directory, name, redis, kafka, line, platform, store)
