"""The keys of the queues' streams, and which stream an entry goes to. Both must stay as they are."""

from __future__ import annotations

from collections import Counter

from redis.crc import key_slot

from bcs.storage.redis.archive_queue import EXPLANATIONS, FACTS, refused_key, waiting_key
from bcs.storage.redis.outbox import parked_key
from bcs.storage.redis.stream_layouts import layouts_key, number_in, stream_key


def test_the_first_stream_has_the_key_of_the_single_stream_of_before() -> None:
    assert [stream_key("bcs:", number) for number in (0, 1, 15)] == [
        "bcs:{outbox}",
        "bcs:{outbox:1}",
        "bcs:{outbox:15}",
    ]


def test_all_keys_of_a_stream_are_in_one_slot_and_the_streams_in_many() -> None:
    def keys(number: int) -> list[str]:
        stream = stream_key("bcs:", number)
        queues = [key("bcs:", name, number) for key in (waiting_key, refused_key) for name in (FACTS, EXPLANATIONS)]
        return [stream, f"{stream}:taken", parked_key("bcs:", number), layouts_key("bcs:", number), *queues]

    slots = [{key_slot(key.encode()) for key in keys(number)} for number in range(16)]
    assert all(len(each) == 1 for each in slots)
    assert len(set.union(*slots)) == 16
    # A cluster of three gives each node a third of the slots.
    assert sorted(Counter(slot // 5462 for each in slots for slot in each).values()) == [5, 5, 6]


def test_a_batch_keeps_its_stream() -> None:
    ids = ["batch_12345", "5f0c1d2e-0000-4000-8000-000000000001", "ä", ""]
    assert [[number_in(layout, batch.encode()) for batch in ids] for layout in (1, 5, 16)] == [
        [0, 0, 0, 0],
        [3, 4, 0, 0],
        [11, 0, 3, 0],
    ]


def test_batches_are_spread_evenly() -> None:
    counted = Counter(number_in(16, b"batch_%d" % number) for number in range(16_000))
    assert len(counted) == 16
    assert max(counted.values()) < 1_200
    assert min(counted.values()) > 800
