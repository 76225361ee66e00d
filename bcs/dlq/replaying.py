"""Puts dead letters back: publishes, waits for the acknowledgement, and only then marks the letter as replayed.

The mark lies beside the letter, in the same partition, so the two live and die together. To stop at any point loses
nothing: what was published when the process was killed and not yet marked, at most one group, is published again by the
next run, and means the same as before, since facts merge. Asked to stop, it marks what is acknowledged first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from bcs.actors.publishing import TOO_LARGE
from bcs.contracts.letters import DeadLetter, Reference, mark_key
from bcs.dlq.originals import ask_again, original_of, put_back
from bcs.dlq.reading import DeadLetterReader, kafka_answers, letter_of, reference_of
from bcs.domain.errors import DeadLetterError, KafkaUnavailable, ReplayFailed
from bcs.settings import Settings

_GROUP = 100
_GROUP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter.

    :param problem: why it could not be put back; None when it was.
    :param away: because Kafka did not answer, as it would not for the next one either.
    """

    letter: DeadLetter
    problem: str | None = None
    away: bool = False


class Replayer:
    """Puts letters back.

    :param letters: reads them.
    :param source: reads originals that a letter has only the beginning of.
    :param url: of the running service, which is asked again what it could not resolve.
    :param rate: at most so many a second; None for no limit.
    :param timeout_seconds: how long what is acknowledged when it is stopped may take to be marked.
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
        timeout_seconds: float,
        tell: Callable[[Replayed], None],
    ) -> None:
        self._letters = letters
        self._source = source
        self._producer = producer
        self._session = session
        self._url = url
        self._rate = rate
        self._tell = tell
        self._timeout_seconds = timeout_seconds
        self._unwritable: dict[str, str] = {}
        self._began: float | None = None
        self._begun = 0

    async def replay(self, wanted: Collection[Reference]) -> None:
        """Put these back, in the order in which they lie.

        Cancellation leaves letters either marked or to be replayed again.

        :raises KafkaUnavailable: Kafka does not answer.
        """
        group: list[DeadLetter] = []
        size, most = 0, _GROUP if self._rate is None else min(_GROUP, max(1, int(self._rate)))
        left = len(wanted)
        async for record in self._letters.records({reference.topic for reference in wanted}):
            if reference_of(record) not in wanted:
                continue
            group.append(letter_of(record))
            size += len(record.value or b"")
            left -= 1
            if len(group) == most or size >= _GROUP_BYTES or not left:
                await self._replay_group(group)
                group, size = [], 0
            if not left:
                return
        await self._replay_group(group)

    async def _replay_group(self, group: list[DeadLetter]) -> None:
        taken: list[tuple[DeadLetter, asyncio.Future[object] | None]] = []
        over: list[Replayed] = []
        done: list[DeadLetter] = []
        try:
            for letter in group:
                await self._keep_to_rate()
                try:
                    taken.append((letter, await self._hand_over(letter)))
                except DeadLetterError as error:
                    over.append(Replayed(letter, error.problem))
        finally:
            # Also when it is stopped: what is acknowledged has to be marked, or it would be replayed twice. Longer than
            # the producer itself waits for an acknowledgement.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 2 * self._timeout_seconds):
                done += [
                    letter for letter, acknowledgement in taken if await self._is_taken(letter, acknowledgement, over)
                ]
                await self._mark(done)
                over += map(Replayed, done)
            decided = {replayed.letter.reference for replayed in over}
            late = [letter for letter, _ in taken if letter.reference not in decided]
            over += [Replayed(letter, "no acknowledgement in time", away=True) for letter in late]
            for replayed in over:
                self._tell(replayed)
        if group and all(replayed.away for replayed in over):
            raise KafkaUnavailable(over[-1].problem or "")

    async def _hand_over(self, letter: DeadLetter) -> asyncio.Future[object] | None:
        if letter.source_topic in self._unwritable:
            raise ReplayFailed(str(letter.reference), self._unwritable[letter.source_topic])
        original = await original_of(letter, self._source)
        if letter.is_resolution:
            await ask_again(self._session, self._url, letter, original)
            return None
        try:
            return await put_back(self._producer, letter, original)
        except ReplayFailed as error:
            if not isinstance(error.__cause__, TOO_LARGE):
                # To find out about a topic takes until a deadline: once is enough.
                self._unwritable[letter.source_topic] = error.problem
            raise

    async def _is_taken(
        self, letter: DeadLetter, acknowledgement: asyncio.Future[object] | None, over: list[Replayed]
    ) -> bool:
        try:
            if acknowledgement is not None:
                await acknowledgement
        except (KafkaError, OSError) as error:
            over.append(Replayed(letter, f"{type(error).__name__}: {error}", away=isinstance(error, KafkaTimeoutError)))
            return False
        return True

    async def _mark(self, done: list[DeadLetter]) -> None:
        with kafka_answers():
            marks = [
                await self._producer.send(
                    letter.reference.topic, None, mark_key(letter.reference), letter.reference.partition
                )
                for letter in done
            ]
            for mark in marks:
                await mark

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
