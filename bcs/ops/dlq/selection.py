"""Which dead letters an operator means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition
from bcs.wire.topics import dead_letter_topic

_RANGE = re.compile(r"(?P<topic>[^/]+)/(?P<partition>[0-9]+)/(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class DeadLetterRange:
    """Letters that lie one behind the other."""

    topic: str
    partition: int
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> DeadLetterRange:
        """From `topic/partition/offset` or `topic/partition/first-last`; the topic with or without its `.DLQ`.

        :raises ValueError: it is neither.
        """
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not of the form topic/partition/offset or topic/partition/first-last")
        first = int(match["first"])
        last = first if match["last"] is None else int(match["last"])
        if last < first:
            raise ValueError(f"{text!r} ends before it begins")
        return cls(dead_letter_topic_of(match["topic"]), int(match["partition"]), first, last)

    def holds(self, position: DeadLetterPosition) -> bool:
        """Whether a letter lies in it."""
        return (
            self.topic == position.topic
            and self.partition == position.partition
            and self.first <= position.offset <= self.last
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Letters that meet all conditions that there are; without one, all letters.

    :param ranges: lie in one of these.
    :param topics: lie on one of these.
    :param reasons: have one of these.
    :param batches: are about one of these.
    :param since: were written then or later.
    :param until: were written before.
    :param services: were written by one of these.
    """

    ranges: tuple[DeadLetterRange, ...] = ()
    topics: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    services: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether nothing is asked of a letter."""
        return self == Selection()

    def takes(self, dead_letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.ranges or any(each.holds(dead_letter.position) for each in self.ranges))
            and (not self.topics or dead_letter.position.topic in self.topics)
            and (not self.reasons or dead_letter.reason in self.reasons)
            and (not self.batches or dead_letter.batch_id in self.batches)
            and (self.since is None or parse_timestamp(dead_letter.timestamp) >= self.since)
            and (self.until is None or parse_timestamp(dead_letter.timestamp) < self.until)
            and (not self.services or dead_letter.service in self.services)
        )


def dead_letter_topic_of(topic: str) -> str:
    """The dead-letter topic, given that or its source."""
    return topic if topic.endswith(dead_letter_topic("")) else dead_letter_topic(topic)


def dead_letter_topics_of(topics: Iterable[str]) -> frozenset[str]:
    """The same for several."""
    return frozenset(map(dead_letter_topic_of, topics))


def parse_timestamp(text: str) -> datetime:
    """A time from RFC 3339; without a zone it is UTC.

    :raises ValueError: it is none.
    """
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
