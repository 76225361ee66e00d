"""Puts dead letters back: publishes, waits for the acknowledgement, and only then marks the letter as replayed.

The mark lies beside the letter, in the same partition, so the two live and die together. To stop at any point loses
nothing: what was published and not yet marked, at most one group, is published again by the next run, and means the
same as before, since facts merge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bcs.contracts.letters import DeadLetter, Reference, mark_key
from bcs.dlq.originals import ask_again, original_of, put_back
from bcs.dlq.reading import DeadLetterReader, kafka_answers, letter_of, reference_of
from bcs.domain.errors import DeadLetterError
from bcs.settings import Settings

_GROUP = 100
_GROUP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter.

    :param problem: why it could not be put back; None when it was.
    """

    letter: DeadLetter
    problem: str | None = None


class Replayer:
    """Puts letters back.

    :param letters: reads them.
    :param source: reads originals that a letter has only the beginning of.
    :param url: of the running service, which is asked again what it could not resolve.
    :param rate: at most so many a second; None for no limit.
    :param tell: is told of each letter once it is decided.
    """

    def __init__(
        self,
        letters: DeadLetterReader,
        source: DeadLetterReader,
        producer: AIOKafkaProducer,
        session: aiohttp.ClientSession,
        *,
        url: str,
        rate: float | None,
        tell: Callable[[Replayed], None],
    ) -> None:
        self._letters = letters
        self._source = source
        self._producer = producer
        self._session = session
        self._url = url
        self._rate = rate
        self._tell = tell
        self._began: float | None = None
        self._begun = 0

    async def replay(self, wanted: Collection[Reference]) -> None:
        """Put these back, in the order in which they lie.

        Cancellation leaves letters either marked or to be replayed again.

        :raises KafkaUnavailable: Kafka does not answer.
        """
        group: list[DeadLetter] = []
        size, most = 0, _GROUP if self._rate is None else min(_GROUP, max(1, int(self._rate)))
        topics = {reference.topic for reference in wanted}
        async for record in self._letters.records(topics):
            if reference_of(record) not in wanted:
                continue
            letter = letter_of(record)
            group.append(letter)
            size += len(record.value or b"")
            if len(group) == most or size >= _GROUP_BYTES:
                await self._replay_group(group)
                group, size = [], 0
        await self._replay_group(group)

    async def _replay_group(self, group: list[DeadLetter]) -> None:
        under_way: list[tuple[DeadLetter, asyncio.Future[object] | None]] = []
        for letter in group:
            await self._keep_to_rate()
            try:
                original = await original_of(letter, self._source)
                if letter.is_resolution:
                    await ask_again(self._session, self._url, letter, original)
                    under_way.append((letter, None))
                else:
                    under_way.append((letter, await put_back(self._producer, letter, original)))
            except DeadLetterError as error:
                self._tell(Replayed(letter, error.problem))
        done = []
        for letter, acknowledgement in under_way:
            try:
                if acknowledgement is not None:
                    await acknowledgement
                done.append(letter)
            except (KafkaError, OSError) as error:
                self._tell(Replayed(letter, f"{type(error).__name__}: {error}"))
        await self._mark(done)

    async def _mark(self, done: list[DeadLetter]) -> None:
        with kafka_answers():
            marks = [
                await self._producer.send(
                    letter.reference.topic, None, mark_key(letter.reference), letter.reference.partition
                )
                for letter in done
            ]
            for letter, mark in zip(done, marks, strict=True):
                await mark
                self._tell(Replayed(letter))

    async def _keep_to_rate(self) -> None:
        now = anyio.current_time()
        if self._began is None:
            self._began = now
        if self._rate is not None:
            await anyio.sleep_until(self._began + self._begun / self._rate)
        self._begun += 1


@asynccontextmanager
async def operators_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer, connected.

    :raises KafkaUnavailable: Kafka does not answer.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        client_id="batch-conductor-dlq",
        acks="all",
        enable_idempotence=settings.kafka_enable_idempotence,
        request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
        max_request_size=settings.kafka_max_message_bytes,
    )
    try:
        with kafka_answers(), anyio.fail_after(settings.kafka_request_timeout_seconds):
            await producer.start()
        yield producer
    finally:
        with anyio.CancelScope(shield=True):
            await producer.stop()
