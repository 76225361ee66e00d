"""Where a schedule plays: servers behind proxies, and one or more processes of the service."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.storage.redis.batch_store import RedisStateStore
from tests.chaos.redis_servers import ChaosRedis, chaos_redis
from tests.support.apache_kafka import apache_kafka
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import create_platform_topics
from tests.support.laws import LAW
from tests.support.ports import held_port
from tests.support.service import BcsProcess, Orchestrator, serve

# A drill of hundreds of kills within minutes must not make the process give up, nor wait long between them.
DRILL: dict[str, Any] = {
    "BCS_CHAOS_ENABLED": "true",
    "BCS_LOG_LEVEL": "DEBUG",
    "BCS_RESTART_MAX": 1_000_000,
    "BCS_BATCH_RESTART_MAX": 1_000_000,
    "BCS_RESTART_BACKOFF_INITIAL_SECONDS": 0.01,
    "BCS_RESTART_BACKOFF_MAXIMUM_SECONDS": 0.05,
    "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": 2,
    "BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS": 0.2,
    "BCS_KAFKA_REQUEST_TIMEOUT_SECONDS": 2,
    "BCS_HANG_SECONDS": 10,
    "BCS_REDIS_DEADLINE_SECONDS": 0.5,
    "BCS_REDIS_BREAKER_OPEN_SECONDS": 0.1,
    "BCS_REQUEST_DEADLINE_SECONDS": 2,
    "BCS_INTAKE_COMMIT_INTERVAL_SECONDS": 0.05,
}


class Stage:
    """Real servers, a proxy in front of each, and replicas that share them.

    :param name: of the group and of the keys.
    :param durable_groups: whether a group gets over the death of a member that has just joined. Tansu waits for ever
        for a leader that died before it told the others their partitions.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        redis: ChaosRedis,
        broker: EmbeddedServer,
        kafka: FaultProxy,
        *,
        durable_groups: bool,
    ) -> None:
        self.name = name
        self.redis, self.broker, self.kafka = redis, broker, kafka
        self.durable_groups = durable_groups
        self.replicas: list[BcsProcess] = []
        self._directory = directory
        self._ports: dict[int, int] = {}
        self._launches = 0
        self._nodes = redis.nodes()
        self.store = RedisStateStore(self._nodes, law=LAW, key_prefix=f"{name}:", ttl_seconds=604_800)

    async def launch(self, replica: int) -> None:
        """Start a replica, the first time or after its end."""
        self._launches += 1
        directory = self._directory / f"launch-{self._launches}"
        environment = {
            **DRILL,
            "BCS_REDIS_KEY_PREFIX": f"{self.name}:",
            "BCS_KAFKA_CONSUMER_GROUP_ID": self.name,
            "BCS_INSTANCE_NAME": f"replica-{replica}",
            "BCS_KAFKA_ENABLE_IDEMPOTENCE": self.durable_groups,  # and Tansu can't do that either
            "BCS_HTTP_PORT": self._ports.setdefault(replica, held_port()),
        }
        process = serve(directory, self.redis.url, self.kafka.address, **environment)
        self.replicas[replica : replica + 1] = [process]
        await process.answers("/healthz")

    async def may_lose_members(self) -> bool:
        """Whether the group would get over the death of any of its members at this moment."""
        if self.durable_groups:
            return True
        for replica in self.replicas:
            async with Orchestrator(replica.base) as caller:
                if not any(name == "bcs_kafka_partition_stalled" for name, _, _ in await caller.samples()):
                    return False
        return True

    async def relaunch(self, replica: int) -> None:
        """Kill -9 a replica, and start it again."""
        self.replicas[replica].signal(signal.SIGKILL)
        await self.replicas[replica].ended()
        await self.launch(replica)

    async def described(self) -> str:
        """The actors and the intake's figures of every replica."""
        texts = []
        for replica in self.replicas:
            async with Orchestrator(replica.base) as door:
                texts.append((await door.get("/internal/v1/actors")).body.decode())
                metrics = (await door.get("/metrics")).body.decode().splitlines()
                texts += [line for line in metrics if line.startswith(("bcs_kafka", "bcs_intake", "bcs_events"))]
        return "\n".join(texts)

    async def aclose(self) -> None:
        """End what is left."""
        for replica in self.replicas:
            replica.__exit__()
        await self._nodes.aclose()

    def heal(self) -> None:
        """Take back every fault."""
        self.redis.heal()
        self.broker.thaw()
        self.kafka.thaw()
        self.kafka.accept()
        self.kafka.delay(0)
        self.kafka.drop_replies(None, 0)
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.signal(signal.SIGCONT)


@asynccontextmanager
async def staged(directory: Path, name: str, replicas: int, jars: Path | None) -> AsyncIterator[Stage]:
    """A stage with its replicas running.

    :param jars: of Apache Kafka, where it can run; else the broker is Tansu.
    """
    port = held_port()
    if jars:
        broker = apache_kafka(jars, directory / "kafka", advertised_port=port)
    else:
        broker = embedded.kafka(directory / "kafka", advertised_port=port)
    try:
        # Not in a thread: a server ends with the thread that started it.
        broker.start()
        async with (
            chaos_redis(directory, proxied=True) as redis,
            FaultProxy("127.0.0.1", broker.port, port) as kafka_proxy,
        ):
            await create_platform_topics(kafka_proxy.address)
            stage = Stage(directory, name, redis, broker, kafka_proxy, durable_groups=jars is not None)
            try:
                for number in range(replicas):
                    await stage.launch(number)
                yield stage
            finally:
                with anyio.CancelScope(shield=True):
                    await stage.aclose()
    finally:
        broker.stop()


async def kill_actor(process: BcsProcess, path: str) -> bool:
    """Kill an actor through the door for chaos; whether the process said that it did."""
    try:
        async with Orchestrator(process.base) as door:
            answer = await door.request("POST", f"/internal/v1/actors/{path}/kill")
    except (aiohttp.ClientError, TimeoutError):
        return False  # the process or its front end died over it: nobody knows
    return answer.status == 202


async def batches_at_work(process: BcsProcess) -> list[str]:
    """The paths of the batches' actors that exist at this moment."""
    try:
        async with Orchestrator(process.base) as door:
            answer = await door.get("/internal/v1/actors")
    except (aiohttp.ClientError, TimeoutError):
        return []
    if answer.status != 200:
        return []
    tree: dict[str, Any] = answer.json
    [batches] = [child for child in tree["children"] if child["name"] == "batches"]
    return [child["path"] for child in batches["children"]]
