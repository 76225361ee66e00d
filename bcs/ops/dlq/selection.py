"""Selects dead letters by the conditions of an operator."""

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
    """Dead letters at consecutive offsets of a partition."""

    topic: str
    partition: int
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> DeadLetterRange:
        """Parse `topic/partition/offset` or `topic/partition/first-last`; the topic may lack its `.DLQ`.

        :raises ValueError: the text has neither form.
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
        """True if a position is in the range."""
        return (
            self.topic == position.topic
            and self.partition == position.partition
            and self.first <= position.offset <= self.last
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Dead letters that meet all given conditions. Without conditions, all dead letters are selected.

    :param ranges: the position is in one of these ranges.
    :param topics: the dead-letter topic is one of these.
    :param reasons: the reason is one of these.
    :param batches: the batch is one of these.
    :param since: written at this time or later.
    :param until: written before this time.
    :param services: the writing service is one of these.
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
        """True if there is no condition."""
        return self == Selection()

    def takes(self, dead_letter: DeadLetter) -> bool:
        """True if a dead letter is selected."""
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
    """The dead-letter topic for a topic that is a source topic or already a dead-letter topic."""
    return topic if topic.endswith(dead_letter_topic("")) else dead_letter_topic(topic)


def dead_letter_topics_of(topics: Iterable[str]) -> frozenset[str]:
    """The dead-letter topics for several topics."""
    return frozenset(map(dead_letter_topic_of, topics))


def parse_timestamp(text: str) -> datetime:
    """Parse a time in RFC 3339; a time without a zone is UTC.

    :raises ValueError: the text is not a time.
    """
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
