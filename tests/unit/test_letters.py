"""Decoding of dead letters, and the selection of dead letters by operators."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import ConsumerRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bcs.cli.dlq_listing import nothing_selected
from bcs.errors import UnreadableDeadLetter
from bcs.ops.dlq.purging import last_to_purge, purged
from bcs.ops.dlq.reading import DeadLetterIndex, Junk
from bcs.ops.dlq.selection import DeadLetterRange, Selection, dead_letter_topics_of
from bcs.wire import topics
from bcs.wire.dead_letters import encode as names
from bcs.wire.dead_letters.decode import (
    DeadLetter,
    DeadLetterPosition,
    purge_key,
    purged_offset,
    read_dead_letter,
    replay_marker_key,
    replayed_offset,
)
from bcs.wire.dead_letters.encode import (
    LARGE_DEAD_LETTER_BYTES,
    ORIGINAL_TIMESTAMP,
    REPLAYED_FROM,
    as_truncated,
    dead_letter,
    failed_resolution,
    original_headers,
    unread_dead_letter,
)
from bcs.wire.published import SERVICE, ConsumedMessage, Headers, OutboundMessage

NOW = datetime(2026, 5, 3, 8, tzinfo=UTC)
WHERE = DeadLetterPosition(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), 2, 7)
WITHOUT_SERVICE = (
    b'{"failed_event_envelope": {}, "dlq_reason": "r", "timestamp": "2026-05-03T08:00:00Z", "additional_metadata": {}}'
)
DETAIL = {"attempts": 3, "error_type": "SomeError", "error_message": "it \udc00 broke"}
values = (
    st.none() | st.binary(max_size=40) | st.sampled_from([b"{}", b'{"raw_base64":"AAAA"}', b'{"a": [1.50, "\\u00e9"]}'])
)
headers = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=9)), max_size=4).map(tuple)


def consumed(value: bytes | None, key: bytes | None = b"essay", headers: Headers = ()) -> ConsumedMessage:
    return ConsumedMessage(
        topics.SPELLCHECK_COMPLETED, 4, 77, timestamp_ms=1_700_000_000_123, key=key, value=value, headers=headers
    )


def read(message: OutboundMessage, where: DeadLetterPosition = WHERE) -> DeadLetter:
    return read_dead_letter(where, message.key, message.value, message.headers)


def letter(
    reason: str = "not_json", batch: str | None = "b", where: DeadLetterPosition = WHERE, now: datetime = NOW
) -> DeadLetter:
    return read(dead_letter(consumed(b"x"), reason, DETAIL, now, batch), where)


@settings(deadline=None)
@given(value=values, key=st.none() | st.binary(max_size=9), headers=headers)
@example(value=b'{"raw_base64":"AAAA"}', key=None, headers=())
def test_a_letter_gives_back_what_was_there(value: bytes | None, key: bytes | None, headers: Headers) -> None:
    found = read(dead_letter(consumed(value, key, headers), "not_json", DETAIL, NOW, "batch"))
    assert (found.value, found.key, found.headers) == (value, key, original_headers(headers))
    assert (found.source_topic, found.source_partition, found.source_offset) == (topics.SPELLCHECK_COMPLETED, 4, 77)
    assert (found.source_timestamp_ms, found.batch_id, found.reason) == (1_700_000_000_123, "batch", "not_json")
    assert (found.attempts, found.failures, found.truncated) == (3, 1, False)
    assert found.first_failure == found.last_failure == "2026-05-03T08:00:00Z"


def test_a_letter_that_fails_again_counts_and_does_not_nest() -> None:
    original = consumed(b"x", headers=(("a", b"1"), ("a", b"2")))
    for failures in range(1, 4):
        now = NOW + timedelta(hours=failures)
        message = dead_letter(original, "not_json", DETAIL, now, None)
        found = read(message)
        assert found.failures == failures
        assert found.first_failure == "2026-05-03T09:00:00Z"
        assert found.last_failure == f"2026-05-03T{8 + failures:02}:00:00Z"
        assert found.headers == (("a", b"1"), ("a", b"2"))
        assert len({name for name, _ in message.headers}) == len(message.headers) - 1, "each of ours stands once"
        again = ((names.FAILURES, b"%d" % failures), (names.FIRST_FAILURE, found.first_failure.encode()))
        original = replace(original, headers=(*found.headers, *again))


@pytest.mark.parametrize("nonsense", [b"", b"-1", b"many", b"\xff", None, "²".encode(), b"9" * 4300, b"9" * 5000])
def test_counts_that_others_made_up_are_not_believed(nonsense: bytes | None) -> None:
    message = dead_letter(consumed(b"x", headers=((names.FAILURES, nonsense),)), "not_json", DETAIL, NOW, None)
    assert read(message).failures == 1


def test_a_letter_without_headers_of_ours_is_read_by_its_value() -> None:
    message = dead_letter(consumed(b"x"), "not_json", DETAIL, NOW, "batch")
    found = read_dead_letter(WHERE, message.key, message.value, ())
    assert (found.value, found.source_offset, found.failures, found.batch_id) == (b"x", 77, 1, None)


@pytest.mark.parametrize("value", [b"\xff" * (LARGE_DEAD_LETTER_BYTES + 1), b"x"])
def test_a_reduced_letter_says_that_the_original_is_elsewhere(value: bytes) -> None:
    many = tuple((f"h{number}", b"x" * 1000) for number in range(70))
    message = dead_letter(consumed(value, headers=many), "not_json", DETAIL, NOW, None)
    truncated = as_truncated(message)
    assert truncated is not None
    assert as_truncated(truncated) is None
    assert {name for name, _ in truncated.headers} <= names.OWN_HEADERS
    found = read(truncated)
    assert (found.truncated, found.value, found.source_offset) == (True, None, 77)
    assert found.beginning == value[:LARGE_DEAD_LETTER_BYTES]
    assert read(message).headers == many


def test_a_key_that_is_too_large_for_a_letter_is_left_to_the_source() -> None:
    truncated = as_truncated(dead_letter(consumed(b"x", key=b"k" * 300_000), "not_json", DETAIL, NOW, None))
    assert truncated is not None
    assert len(truncated.value) < 5_000
    assert truncated.key == f"{topics.SPELLCHECK_COMPLETED}/4/77".encode(), (
        "a compacted topic takes no letter without a key"
    )
    found = read(truncated)
    assert (found.truncated, found.key, found.source_offset) == (True, None, 77)


@pytest.mark.parametrize(
    ("value", "key", "headers"),
    [
        (b"\xff" * 20_000_000, b"key", ()),
        (b'{"a": "' + b"x" * 20_000_000 + b'"}', None, ()),
        (b"x", b"k" * 20_000_000, ()),
        (b"x", b"key", (("h", b"x" * 20_000_000),)),
        (b"\xff" * 900_000, b"key", ()),  # larger than the limit only as base64
    ],
)
def test_a_letter_that_would_be_too_large_is_made_reduced_at_once(
    value: bytes, key: bytes | None, headers: Headers
) -> None:
    message = dead_letter(consumed(value, key, headers), "not_json", DETAIL, NOW, None, limit_bytes=1_000_000)
    assert message.truncated is None
    assert message.size_bytes < 2 * LARGE_DEAD_LETTER_BYTES
    found = read(message)
    assert (found.truncated, found.value, found.source_offset) == (True, None, 77)
    assert found.value_sha256 == hashlib.sha256(value).hexdigest()
    assert found.beginning == value[:LARGE_DEAD_LETTER_BYTES]


def test_a_large_original_is_not_copied_for_its_letter() -> None:
    large = consumed(b"\xff" * 20_000_000)
    tracemalloc.start()
    try:
        dead_letter(large, "not_json", DETAIL, NOW, None, limit_bytes=1_000_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_long_error_message_makes_no_letter_too_large() -> None:
    detail = {**DETAIL, "error_message": "x" * 5_000_000}
    message = dead_letter(consumed(b"x"), "not_json", detail, NOW, None, limit_bytes=1_000_000)
    assert message.size_bytes < 10_000
    assert read(message).value == b"x"


def test_a_letter_about_what_could_not_be_read_says_where_it_lies() -> None:
    detail = {"error_type": "Skipped", "error_message": "the disk is broken"}
    message = unread_dead_letter(topics.SPELLCHECK_COMPLETED, 4, 77, "skipped_by_operator", detail, NOW)
    assert message.topic == topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
    assert message.key == f"{topics.SPELLCHECK_COMPLETED}/4/77".encode()
    found = read(message)
    assert (found.unread, found.truncated, found.value, found.key) == (True, True, None, None)
    assert (found.source_partition, found.source_offset, found.source_timestamp_ms) == (4, 77, None)
    assert (found.reason, found.error_message, found.failures) == ("skipped_by_operator", "the disk is broken", 1)
    assert not letter().unread


def test_a_first_failure_that_others_made_up_is_not_kept() -> None:
    made_up = ((names.FIRST_FAILURE, b"x" * 1_000_000),)
    message = dead_letter(consumed(b"x", headers=made_up), "not_json", DETAIL, NOW, None)
    assert read(message).first_failure == "2026-05-03T08:00:00Z"


def test_a_header_that_only_begins_like_ours_is_the_original_s() -> None:
    message = dead_letter(consumed(b"x", headers=(("dlt-tenant", b"7"),)), "not_json", DETAIL, NOW, None)
    assert read(message).headers == (("dlt-tenant", b"7"),)


@pytest.mark.parametrize(
    ("envelope", "value"),
    [(b'{"a": 1}', b'{"a": 1}'), (b'{"raw_base64": "/wA="}', b"\xff\x00"), (b'{"raw_base64": null}', None)],
)
def test_a_letter_of_another_service_is_read_by_the_contract(envelope: bytes, value: bytes | None) -> None:
    rest = b'"dlq_reason":"x","timestamp":"2026-05-03T08:00:00Z","service":"other","additional_metadata":{}}'
    found = read_dead_letter(WHERE, b"k", b'{"failed_event_envelope":' + envelope + b"," + rest, ())
    assert (found.value, found.source_topic) == (value, topics.SPELLCHECK_COMPLETED)


def test_a_resolution_s_letter_has_the_request() -> None:
    message = failed_resolution(b'{"batch_id": "b", "more": 1}', "b", "nlp", ValueError("x"), NOW)
    found = read(message, DeadLetterPosition(message.topic, 0, 0))
    assert found.is_resolution
    assert (found.value, found.batch_id, found.source_partition) == (b'{"batch_id": "b", "more": 1}', "b", None)


def test_a_large_resolution_s_dead_letter_has_the_used_fields() -> None:
    request = b'{"batch_id": "b", "more": "' + b"x" * 1_000_000 + b'"}'
    message = failed_resolution(request, "b", "nlp", ValueError("x"), NOW, used_fields=b'{"batch_id":"b"}')
    assert read(message, DeadLetterPosition(message.topic, 0, 0)).value == json.dumps(json.loads(request)).encode()
    truncated = as_truncated(message)
    assert truncated is not None
    assert truncated.size_bytes < 5_000
    found = read(truncated, DeadLetterPosition(message.topic, 0, 0))
    assert json.loads(found.value or b"") == {"batch_id": "b"}
    assert (found.truncated, found.batch_id, truncated.key) == (False, "b", b"b")


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"a":' * 10_000,
        b'{"additional_metadata": {}, "timestamp": "yesterday", "dlq_reason": "x", "failed_event_envelope": {}}',
    ],
)
def test_what_is_no_letter_is_told(value: bytes | None) -> None:
    with pytest.raises(UnreadableDeadLetter):
        read_dead_letter(WHERE, b"key", value, ())


def test_a_letter_whose_original_was_changed_on_the_way_is_told() -> None:
    message = dead_letter(consumed(b'{"a": 1}'), "not_json", DETAIL, NOW, None)
    with pytest.raises(UnreadableDeadLetter, match="digest"):
        read(replace(message, value=message.value.replace(b'{"a": 1}', b'{"raw_base64": "AAAA"}')))


def test_a_mark_names_its_letter_and_nothing_else_is_one() -> None:
    assert replayed_offset(replay_marker_key(WHERE), None) == WHERE.offset
    for key, value in (
        (replay_marker_key(WHERE), b"x"),
        (b"7", None),
        (None, None),
        (b"replayed:x", None),
        (b"replayed:" + b"9" * 5000, None),
    ):
        assert replayed_offset(key, value) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t/0/5", DeadLetterRange("t.DLQ", 0, 5, 5)),
        ("t.DLQ/12/5-9", DeadLetterRange("t.DLQ", 12, 5, 9)),
        ("a.b.v1.DLQ/0/0", DeadLetterRange("a.b.v1.DLQ", 0, 0, 0)),
    ],
)
def test_a_range_is_read(text: str, expected: DeadLetterRange) -> None:
    assert DeadLetterRange.parse(text) == expected


@pytest.mark.parametrize("text", ["", "t", "t/0", "t/0/", "t/x/1", "t/0/9-3", "t/0/-1", "t/0/1-", "a/b/0/1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|ends before"):
        DeadLetterRange.parse(text)


def test_a_selection_takes_what_meets_all_of_it() -> None:
    mine = letter()
    assert Selection().empty
    whole = Selection(
        ranges=(DeadLetterRange.parse(f"{WHERE.topic}/2/5-7"),),
        topics=dead_letter_topics_of([topics.SPELLCHECK_COMPLETED]),
        reasons=frozenset({"not_json"}),
        batches=frozenset({"b"}),
        since=NOW,
        until=NOW + timedelta(seconds=1),
    )
    assert whole.takes(mine)
    assert not whole.empty
    others = [
        letter(reason="not_utf8"),
        letter(batch="c"),
        letter(batch=None),
        letter(where=replace(WHERE, offset=8)),
        letter(where=replace(WHERE, partition=1)),
        letter(where=replace(WHERE, topic="other.DLQ")),
        letter(now=NOW - timedelta(seconds=1)),
        letter(now=NOW + timedelta(seconds=1)),
    ]
    assert not any(whole.takes(other) for other in others)
    assert all(Selection().takes(other) for other in others)


def test_purging_stops_at_the_first_letter_that_is_to_stay() -> None:
    def at(offset: int, hour: int, partition: int = 0) -> DeadLetter:
        return letter(where=DeadLetterPosition("t.DLQ", partition, offset), now=NOW + timedelta(hours=hour))

    letters = [at(1, 1), at(3, 5), at(4, 2), at(9, 1, partition=1)]
    old, new = (Junk("junk", int((NOW + timedelta(hours=hour)).timestamp() * 1000)) for hour in (1, 9))
    junk = {
        DeadLetterPosition("t.DLQ", 0, 2): old,
        DeadLetterPosition("t.DLQ", 0, 7): old,
        DeadLetterPosition("t.DLQ", 2, 0): new,
    }
    index = DeadLetterIndex({each.position: each for each in letters}, junk)
    last = last_to_purge(index, NOW + timedelta(hours=4))
    assert last == {("t.DLQ", 0): 2, ("t.DLQ", 1): 9}
    assert sorted(each.offset for each in purged([*index.dead_letters, *junk], last)) == [1, 2, 9]
    assert last_to_purge(index, None) == {("t.DLQ", 0): 7, ("t.DLQ", 1): 9, ("t.DLQ", 2): 0}
    assert last_to_purge(index, NOW) == {}


def test_letters_of_other_services_are_told_apart_and_stay() -> None:
    ours, other_service = (
        letter(where=DeadLetterPosition("t.DLQ", 0, 0)),
        letter(where=DeadLetterPosition("t.DLQ", 0, 1)),
    )
    other_service = replace(other_service, service="another_service")
    behind = letter(where=DeadLetterPosition("t.DLQ", 0, 2))
    index = DeadLetterIndex({each.position: each for each in (ours, other_service, behind)}, {}, set(), total=3)
    assert (ours.is_ours, other_service.is_ours) == (True, False)
    assert read_dead_letter(WHERE, None, WITHOUT_SERVICE, ()).service == "unknown"
    chosen = index.of(Selection(services=frozenset({"another_service"})))
    assert (list(chosen.dead_letters), chosen.total) == ([other_service.position], 3)
    assert last_to_purge(index, None) == {("t.DLQ", 0): 0}, "nothing behind a letter that stays"
    assert last_to_purge(index, None, ("another_service",)) == {}
    assert last_to_purge(index, None, (SERVICE, "another_service")) == {("t.DLQ", 0): 2}


def test_a_mark_of_a_purge_takes_out_what_lies_before_it() -> None:
    index = DeadLetterIndex()
    dead = dead_letter(consumed(b"x"), "not_json", DETAIL, NOW, "b")
    messages = [(0, dead.key, dead.value), (1, b"k", b"junk"), (2, dead.key, dead.value), (3, purge_key(1), None)]
    for partition in (0, 1):
        for offset, key, value in messages[: 4 - partition]:
            index.take(ConsumerRecord("t.DLQ", partition, offset, 0, 0, key, value, 0, 0, 0, ()))
    assert sorted(map(str, index.dead_letters)) == ["t.DLQ/0/2", "t.DLQ/1/0", "t.DLQ/1/2"]
    assert list(map(str, index.unreadable)) == ["t.DLQ/1/1"]
    assert [purged_offset(b"purged:x", None), purged_offset(b"purged:1", b""), replayed_offset(purge_key(1), None)] == [
        None,
        None,
        None,
    ]


def test_that_nothing_was_selected_is_no_empty_topic() -> None:
    assert nothing_selected(0) == "There are no dead letters."
    assert nothing_selected(1009) == "None of the 1,009 dead letters matches."


def test_a_replayed_message_that_fails_again_keeps_its_first_time() -> None:
    replayed = ((ORIGINAL_TIMESTAMP, b"1000"), (REPLAYED_FROM, b"topic.DLQ/0/1"))
    for headers, time_ms in ((replayed, 1000), (replayed[:1], 5000), ((), 5000)):
        failed = ConsumedMessage(topics.CJ_COMPLETED, 0, 7, timestamp_ms=5000, key=b"key", value=b"{", headers=headers)
        written = dead_letter(failed, "not_json", {}, datetime(2026, 1, 1, tzinfo=UTC), None)
        assert dict(written.headers)[ORIGINAL_TIMESTAMP] == b"%d" % time_ms
        assert json.loads(written.value)["additional_metadata"]["source_timestamp_ms"] == time_ms
