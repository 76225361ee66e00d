"""Dead letters for callers of the running service: the newest ones, and replays. Bounded, and away from its event loop.

Each call has a thread with an event loop and Kafka clients of its own, because to decode a dead letter takes the longer
the larger its original is. One call runs at a time; others wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from aiokafka import ConsumerRecord, TopicPartition

from bcs.config.settings import Settings
from bcs.errors import KafkaUnavailable
from bcs.http.dead_letters import FoundDeadLetters, ReplayResult, WantedDeadLetters
from bcs.ops.dlq.originals import Original
from bcs.ops.dlq.reading import DeadLetterIndex, DeadLetterReader, dead_letter_reader
from bcs.ops.dlq.replaying import Replayed, Replayer, operators_producer
from bcs.ops.dlq.selection import Selection, dead_letter_topic_of
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition
from bcs.wire.tracing import TraceContext

T = TypeVar("T")

_MOST_BYTES = 32 * 1024 * 1024
_FIRST_RECORDS = 64


@dataclass(frozen=True, slots=True)
class ThreadedDesk:
    """Reads and replays in a thread.

    :param seconds: how long a call may take once it has its turn.
    """

    settings: Settings
    seconds: float
    _turns: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    async def newest(self, wanted: WantedDeadLetters) -> FoundDeadLetters:
        """See `DeadLetterDesk`."""
        return await self._apart(partial(_newest, self.settings, wanted), self.seconds)

    async def replay(
        self,
        positions: Collection[DeadLetterPosition],
        *,
        again: bool,
        by: str,
        resolve: Callable[[DeadLetter, bytes, TraceContext | None], Awaitable[None]],
    ) -> Sequence[ReplayResult]:
        """See `DeadLetterDesk`."""
        loop = asyncio.get_running_loop()

        async def resolve_there(dead_letter: DeadLetter, original: Original, trace: TraceContext | None) -> None:
            asking = _awaited(resolve(dead_letter, original.value or b"", trace))
            asked = asyncio.run_coroutine_threadsafe(asking, loop)
            await asyncio.wrap_future(asked)

        replay = partial(_replay, self.settings, frozenset(positions), again=again, by=by, resolve=resolve_there)
        results = {each.position: each for each in await self._apart(replay, self.seconds)}
        return [results[position] for position in dict.fromkeys(positions)]

    async def _apart(self, work: Callable[[], Awaitable[T]], seconds: float) -> T:
        async def in_time() -> T:
            try:
                with anyio.fail_after(seconds):
                    return await work()
            except TimeoutError as error:
                raise KafkaUnavailable(f"no answer in {seconds:g} s") from error

        # The caller may leave before; the thread ends by itself.
        return await anyio.to_thread.run_sync(anyio.run, in_time, abandon_on_cancel=True, limiter=self._turns)


async def _awaited(one: Awaitable[None]) -> None:
    await one


async def _newest(settings: Settings, wanted: WantedDeadLetters) -> FoundDeadLetters:
    topic = None if wanted.topic is None else dead_letter_topic_of(wanted.topic)
    selection = Selection(
        reasons=frozenset((wanted.reason,) if wanted.reason else ()),
        batches=frozenset((wanted.batch,) if wanted.batch else ()),
    )
    names = [each for each in topics.DEAD_LETTERS if topic in (None, each)]

    def chosen(index: DeadLetterIndex) -> list[DeadLetterPosition]:
        found = index.of(selection).dead_letters
        return [where for where in found if not (wanted.waiting and where in index.replayed)]

    async with dead_letter_reader(settings) as reader:
        index, older = await _index_of_newest(reader, names, lambda index: len(chosen(index)) >= wanted.limit)
        stalled = [str(each) for each in reader.stalled]
    newest = sorted((index.dead_letters[where] for where in chosen(index)), key=lambda each: each.timestamp)[::-1]
    unreadable = {where: junk.problem for where, junk in sorted(index.of(selection).unreadable.items())[::-1]}
    return FoundDeadLetters(
        dead_letters=newest[: wanted.limit],
        replayed=index.replayed,
        unreadable=dict(list(unreadable.items())[: wanted.limit]),
        stalled=stalled,
        older=older or len(newest) > wanted.limit,
    )


async def _index_of_newest(
    reader: DeadLetterReader, names: Collection[str], enough: Callable[[DeadLetterIndex], bool]
) -> tuple[DeadLetterIndex, bool]:
    """Read from the ends backwards, in steps that double, until there is enough or a limit is reached.

    A marker comes behind the dead letters that it is about, in the same partition. So what is read is complete.

    :returns: the index, and True if there is more before.
    """
    steps: list[Sequence[ConsumerRecord]] = []
    first, starts = await reader.extent(names)
    left_bytes, count = _MOST_BYTES, _FIRST_RECORDS
    index = DeadLetterIndex()
    while True:
        ranges = {key: (max(first[key], end - count), end) for key, end in starts.items() if end > first[key]}
        if not ranges:
            return index, False
        records = await reader.between(ranges, most_bytes=left_bytes, to_present_end=not steps)
        if records is None:
            return index, True
        left_bytes -= sum(len(record.value or b"") for record in records)
        steps.append(records)
        starts |= {key: begin for key, (begin, _) in ranges.items()}
        index = DeadLetterIndex()
        for step in reversed(steps):
            for record in step:
                index.take(record)
        if enough(index):
            return index, any(starts[key] > first[key] for key in starts)
        count *= 2


async def _replay(
    settings: Settings,
    positions: frozenset[DeadLetterPosition],
    *,
    again: bool,
    by: str,
    resolve: Callable[[DeadLetter, Original, TraceContext | None], Awaitable[None]],
) -> list[ReplayResult]:
    results: dict[DeadLetterPosition, ReplayResult] = {}

    def note(replayed: Replayed) -> None:
        position = replayed.dead_letter.position
        results[position] = ReplayResult(position, replayed.problem)

    since: dict[TopicPartition, int] = {}
    for each in positions:
        key = TopicPartition(each.topic, each.partition)
        since[key] = min(each.offset, since.get(key, each.offset))

    async with (
        dead_letter_reader(settings) as dead_letters,
        dead_letter_reader(settings) as source,
        operators_producer(settings) as producer,
    ):
        # The marker of a dead letter is behind it, in the same partition.
        index = await dead_letters.index({key.topic for key in since}, since)
        waiting = positions & index.dead_letters.keys()
        wanted = waiting if again else waiting - index.replayed
        replayer = Replayer(
            dead_letters, source, producer, resolve=resolve, rate=None, settings=settings, notify=note, by=by
        )
        await replayer.replay(wanted)
    for where in positions - results.keys():
        if where in index.replayed:
            problem = "it was replayed before"
        elif where in index.unreadable:
            problem = f"it is not a dead letter of BCS: {index.unreadable[where].problem}"
        else:
            problem = "there is no dead letter at this position"
        results[where] = ReplayResult(where, problem)
    return list(results.values())
