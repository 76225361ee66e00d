"""Services on Apache Kafka, in a thread and as processes, and requests to them."""

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import ConsumerRecord
from aiokafka.structs import RecordMetadata

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.wire import topics
from tests.support.kafka import Platform, values
from tests.support.service import BcsProcess, Orchestrator, RunningService, running_service, serve
from tests.support.waiting import wait_until

LATE_TOPIC = topics.dead_letter_topic(topics.CJ_COMPLETED)  # the one that `OwnKafka` lacks
IN_TIME_SECONDS = 30
LETTER_SECONDS = 60
# Kafka allows no shorter sessions than six seconds, unless it is told to, as ours is.
SESSION_SECONDS = 6.0 if os.environ.get("BCS_TEST_KAFKA_BOOTSTRAP_SERVERS") else 1.5


class LostAnswers:
    """Connections to a broker on which one response is lost after its request was carried out.

    :param lost: how many answers were.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.about: bytes | None = None

    def lose_answer(self, about: bytes) -> None:
        """Lose the one to the next request that holds these bytes, and the connection with it."""
        self.about = about

    def conversation(self, _port: int) -> "_Conversation":
        """Handles one client connection."""
        return _Conversation(self)


@dataclass
class _Conversation:
    answers: LostAnswers
    awaited: bytes | None = None

    async def request(self, chunk: bytes) -> None:
        if self.answers.about and self.answers.about in chunk:
            self.answers.about, self.awaited = None, chunk[8:12]  # the correlation id, behind length, API and version

    async def reply(self, chunk: bytes) -> None:
        if self.awaited and chunk[4:8] == self.awaited:
            self.answers.lost += 1
            raise ConnectionResetError("the answer is lost on purpose")


@dataclass(frozen=True)
class OwnKafka:
    """A broker of ours.

    :param address: where clients find it.
    :param limit_bytes: the largest message that it takes.
    """

    server: EmbeddedServer
    address: str
    answers: LostAnswers
    limit_bytes: int

    def log_of(self, topic: str, partition: int) -> Path:
        """The file that a partition is written to."""
        return max((self.server.directory / "data" / f"{topic}-{partition}").glob("*.log"))


@asynccontextmanager
async def service_on(kafka: str, redis_url: str, **overrides: object) -> AsyncIterator[RunningService]:
    """A service that produces idempotently, which is the default."""
    settings = {
        "kafka_enable_idempotence": True,
        "kafka_session_timeout_seconds": SESSION_SECONDS,
        "redis_url": redis_url,
        "kafka_bootstrap_servers": kafka,
    }
    async with running_service(**{**settings, **overrides}) as service:
        yield service


def replica(directory: Path, kafka: str, redis_url: str, name: str, of: dict[str, str], **more: object) -> BcsProcess:
    """A process beside others, with which it shares ``of``."""
    environment = {
        "BCS_KAFKA_ENABLE_IDEMPOTENCE": "true",
        "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": SESSION_SECONDS,
        "BCS_INSTANCE_NAME": name,
    }
    return serve(directory / name, redis_url, kafka, **{**environment, **of, **more})


def shared_names(unique: str) -> dict[str, str]:
    """The shared environment variables of replicas."""
    return {"BCS_REDIS_KEY_PREFIX": f"{unique}:", "BCS_KAFKA_CONSUMER_GROUP_ID": unique}


def as_overrides(environment: dict[str, str]) -> dict[str, object]:
    """The same as settings."""
    return {name.removeprefix("BCS_").lower(): value for name, value in environment.items()}


async def letter_about(platform: Platform, source: RecordMetadata) -> dict[str, Any]:
    """The first dead letter whose source position is this one."""

    async def letters() -> list[dict[str, Any]]:
        records: list[ConsumerRecord] = await platform.messages(topics.dead_letter_topic(source.topic))
        return [
            letter
            for letter in values(records)
            if letter["additional_metadata"]["source_partition"] == source.partition
            and letter["additional_metadata"]["source_offset"] == source.offset
        ]

    found: list[dict[str, Any]] = await wait_until(
        letters, LETTER_SECONDS, description=f"the letter about {source} arrives"
    )
    return found[0]


def original(letter: dict[str, Any]) -> bytes:
    """The bytes that a dead letter is about."""
    return base64.b64decode(letter["failed_event_envelope"]["raw_base64"])


async def has_status(orchestrator: Orchestrator, dependency: str, status: str) -> bool:
    """True if `/healthz` has this status for a dependency."""
    answer = await orchestrator.get("/healthz")
    assert answer.status == 200
    return bool(answer.json["dependencies"][dependency]["status"] == status)


async def assert_nothing_crashed(service: RunningService, orchestrator: Orchestrator) -> None:
    """No actor was restarted."""
    assert [
        name for name, _, value in await orchestrator.samples() if name == "bcs_actor_restarts_total" and value
    ] == []
    assert all(child.restarts == 0 for child in service.snapshot().children)


async def assert_outbox_empties(orchestrator: Orchestrator) -> None:
    """All that is to be published is, soon."""

    async def is_empty() -> bool:
        return await orchestrator.metric("bcs_outbox_backlog") == 0

    await wait_until(is_empty, description="nothing is stuck in the outbox")
