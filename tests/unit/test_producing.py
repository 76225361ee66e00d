"""Samples of the consumed events are valid, and files of events become the messages that the platform would send."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from bcs.cli.event_files import EventMessage, UnusableEvent, documents_in, messages_in
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder
from bcs.wire.events import ELSBatchPhaseOutcomeV1
from bcs.wire.producing import EventType, Sample, event_type_of, sample_events

NOW = datetime(2026, 5, 3, 8, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
ABOUT = Sample(batch_id="b", completed=["anna", "ben"], failed=["chloe"], phase="nlp")
FACTS: dict[EventType, Callable[[list[Fact]], bool]] = {
    EventType.SPELLCHECK_COMPLETED: lambda facts: (
        facts
        == [
            EssayPhaseEnded("spellcheck", "anna", Outcome.COMPLETED, NOW_US),
            EssayPhaseEnded("spellcheck", "ben", Outcome.COMPLETED, NOW_US),
            EssayPhaseEnded("spellcheck", "chloe", Outcome.FAILED, NOW_US),
        ]
    ),
    EventType.CJ_COMPLETED: lambda facts: outcome_of(facts) == ("cj_assessment", ("anna", "ben"), ("chloe",)),
    EventType.PHASE_OUTCOME: lambda facts: outcome_of(facts) == ("nlp", ("anna", "ben"), ("chloe",)),
    EventType.ESSAYS_REGISTERED: lambda facts: facts == [EssaysRegistered(("anna", "ben", "chloe"), 3, NOW_US)],
}
KEYS = {
    EventType.SPELLCHECK_COMPLETED: [b"anna", b"ben", b"chloe"],
    EventType.CJ_COMPLETED: [b"b"],
    EventType.PHASE_OUTCOME: [b"b"],
    EventType.ESSAYS_REGISTERED: [b"b"],
}


def outcome_of(facts: list[Fact]) -> tuple[Any, ...]:
    [fact] = facts
    assert isinstance(fact, PhaseOutcome)
    return fact.phase, fact.completed, fact.failed


def test_there_is_a_type_for_each_topic_that_the_service_reads() -> None:
    assert {event_type.topic for event_type in EventType} == set(topics.CONSUMED)
    decoder = EventDecoder(PLATFORM_PHASES)
    assert {event_type.value for event_type in EventType} == {decoder.event_type(topic) for topic in topics.CONSUMED}
    assert event_type_of(topics.PHASE_OUTCOME) is event_type_of(ELSBatchPhaseOutcomeV1.__name__)
    assert event_type_of(topics.PHASE_SKIPPED) is None


@pytest.mark.parametrize("event_type", EventType)
def test_a_sample_is_sent_as_the_platform_sends_it_and_says_what_was_asked(event_type: EventType) -> None:
    printed = "\n".join(json.dumps(event, indent=2) for event in sample_events(event_type, ABOUT, now=NOW)).encode()
    checked: list[EventMessage] = []
    messages = messages_in(printed, check=checked.append)
    assert messages == checked
    assert {message.event_type for message in messages} == {event_type}
    assert [message.key for message in messages] == KEYS[event_type]
    decoded = [EventDecoder(PLATFORM_PHASES).decode(event_type.topic, each.value, NOW_US // 1000) for each in messages]
    assert FACTS[event_type]([fact for event in decoded for fact in event.facts])
    assert {event.batch_id for event in decoded} == {"b"}
    assert len({event.event_id for event in decoded} - {None}) == len(decoded)


def test_documents_keep_their_bytes_and_need_no_separator() -> None:
    assert documents_in(b' {"a": 1.50}{"b":\n "\xc3\xa5"}\n[]') == [b'{"a": 1.50}', b'{"b":\n "\xc3\xa5"}', b"[]"]


def refuse(_: EventMessage) -> None:
    raise UnusableEvent("not like this")


@pytest.mark.parametrize(
    ("content", "check", "said"),
    [
        (b"  \n", None, "the file has no event"),
        (b'{"event_type": "other"}', None, "event 1: its event_type is none of huleedu."),
        (b"[]", None, "event 1: its event_type is none of"),
        (b'{"event_type": "BatchEssaysRegistered"}', refuse, "event 1: not like this"),
        (b"{half", refuse, "this is not JSON in UTF-8"),
        (b"\xff", None, "--unchecked with --topic sends it"),
    ],
)
def test_what_can_not_be_sent_is_named_with_what_mends_it(
    content: bytes, check: Callable[[EventMessage], None] | None, said: str
) -> None:
    with pytest.raises(UnusableEvent, match=said.replace("(", r"\(")):
        messages_in(content, check=check)


@pytest.mark.parametrize("content", [b"{half", b"\xff\x00 "])
def test_unchecked_bytes_are_one_message_as_they_are(content: bytes) -> None:
    [message] = messages_in(content, event_type=EventType.CJ_COMPLETED, key=b"k", check=None)
    assert message == EventMessage(EventType.CJ_COMPLETED, b"k", content)


def test_an_older_producers_event_type_and_a_given_key_are_taken() -> None:
    content = b'{"event_type": "SpellcheckPhaseCompletedV1", "data": {"entity_id": 7}}'
    assert messages_in(content, check=None)[0].key is None
    assert messages_in(content, key=b"mine", check=None)[0].key == b"mine"
