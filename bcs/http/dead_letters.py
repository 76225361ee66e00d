"""What the routes about dead letters need: who reads and replays them, and the bodies of their requests and answers."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field, StrictBool

from bcs.http.answers import Count
from bcs.http.misspelt import Fields
from bcs.http.requests import Body
from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition
from bcs.wire.documents import Timestamp, described
from bcs.wire.tracing import TraceContext

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # as in `answers`

MOST_LISTED = 500
USUAL_LISTED = 50
MOST_REPLAYED = 100
_POSITION = r"^[^/]{1,249}/[0-9]{1,9}/[0-9]{1,19}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedDeadLetters:
    """The dead letters that a caller wants to see.

    :param limit: how many at most.
    :param waiting: only those that were not replayed.
    :param topic: only of this dead-letter topic; None for all.
    :param reason: only with this reason; None for any.
    :param batch: only of this batch; None for any.
    """

    limit: int
    waiting: bool
    topic: str | None = None
    reason: str | None = None
    batch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDeadLetters:
    """The newest dead letters.

    :param dead_letters: the newest first, without the values of their originals.
    :param replayed: the positions of those that were replayed.
    :param unreadable: the records that are not readable dead letters, with the reason.
    :param stalled: why partitions could not be read to their ends.
    :param older: True if there may be older ones that were not looked at.
    """

    dead_letters: Sequence[DeadLetter]
    replayed: Collection[DeadLetterPosition]
    unreadable: Mapping[DeadLetterPosition, str]
    stalled: Sequence[str]
    older: bool


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What became of a dead letter.

    :param problem: the reason why it was not replayed; None if it was.
    """

    position: DeadLetterPosition
    problem: str | None


class DeadLetterDesk(Protocol):
    """Reads and replays dead letters, without work for the event loop of the service."""

    async def newest(self, wanted: WantedDeadLetters) -> FoundDeadLetters:
        """The newest dead letters, within limits of bytes and time.

        :raises KafkaUnavailable: Kafka does not answer, or refuses.
        """

    async def replay(
        self,
        positions: Collection[DeadLetterPosition],
        *,
        again: bool,
        by: str,
        resolve: Callable[[DeadLetter, bytes, TraceContext | None], Awaitable[None]],
    ) -> Sequence[ReplayResult]:
        """Replay dead letters.

        :param again: True to replay those that were replayed before, too.
        :param by: who replays.
        :param resolve: asks again for the resolution that a dead letter is about; called on the event loop.
        :raises KafkaUnavailable: Kafka does not answer, or refuses; some may be replayed.
        """


class DeadLettersQuery(Body):
    """The dead letters that the caller wants to see."""

    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)] = USUAL_LISTED
    state: Annotated[
        Literal["waiting", "all"], Field(description="`waiting`: only those that were not replayed yet.")
    ] = "waiting"
    topic: Annotated[str | None, Field(min_length=1, description="Only of this topic; it may lack its `.DLQ`.")] = None
    reason: Annotated[str | None, Field(min_length=1, description="Only with this reason.")] = None
    batch: Annotated[str | None, Field(min_length=1, description="Only of this batch.")] = None


class ReplayedDeadLetters(Body):
    """An operator's order to replay dead letters."""

    fields: ClassVar[Fields] = {"dead_letters": None, "again": None, "correlation_id": None}
    dead_letters: Annotated[
        tuple[Annotated[str, Field(pattern=_POSITION)], ...],
        Field(
            min_length=1,
            max_length=MOST_REPLAYED,
            fail_fast=True,
            description="The position of each, as in the list: topic/partition/offset.",
        ),
    ]
    again: Annotated[StrictBool, Field(description="True replays those that were replayed before, too.")] = False


@described
class ListedDeadLetter(TypedDict):
    """A dead letter, without its original."""

    position: str
    """topic/partition/offset, for a replay."""
    time: Timestamp
    reason: str
    batch_id: str | None
    source: str
    """The place of the original in Kafka, or `POST /internal/v1/pipelines/define`."""
    error: str
    """What went wrong, the first 500 characters."""
    failures: Count
    """How often the original became a dead letter."""
    replayed: bool
    service: str
    """The service that wrote it."""


@described
class UnreadableRecord(TypedDict):
    """A message on a dead-letter topic that is not a dead letter of BCS."""

    position: str
    problem: str


@described
class DeadLetters(TypedDict):
    """The newest dead letters."""

    dead_letters: Sequence[ListedDeadLetter]
    unreadable: Sequence[UnreadableRecord]
    stalled: Sequence[str]
    """Partitions that could not be read to their ends, and why."""
    older: bool
    """True if there may be older ones that this answer did not look at: `bcs dlq list` does."""


@described
class ReplayOutcome(TypedDict):
    """What became of one dead letter."""

    position: str
    status: Literal["replayed", "failed"]
    problem: str | None
    """Why it was not replayed."""


@described
class DeadLettersReplayed(TypedDict):
    """What became of each dead letter, in the order of the request."""

    results: Sequence[ReplayOutcome]
    replayed: Count
    failed: Count
