"""What a node of a Redis Cluster says about its slots."""

from __future__ import annotations

from typing import Any

import pytest

from bcs.storage.redis.topology import SLOTS, UNKNOWN_EPOCH, NodeAddress, SlotRange, Topology, slot_of

ASKED = NodeAddress("asked.example", 7000)
A, B, C = (NodeAddress("10.0.0.1", 7001 + number) for number in range(3))


def node(address: NodeAddress, *more: Any) -> list[Any]:
    return [address.host.encode(), address.port, b"id", *more]


def test_each_slot_has_the_master_that_is_reported() -> None:
    slots = [[8000, SLOTS - 1, node(B), node(C)], [0, 99, node(A)], [200, 7999, node(A)]]
    topology = Topology.from_replies(slots, {"cluster_current_epoch": "7"}, ASKED)
    assert topology.ranges == [SlotRange(0, 99, A), SlotRange(200, 7999, A), SlotRange(8000, SLOTS - 1, B)]
    owners = topology.owners()
    assert len(owners) == SLOTS
    assert [owners[slot] for slot in (0, 99, 100, 199, 200, 7999, 8000, -1)] == [A, A, None, None, A, A, B, B]
    assert topology.shards() == {A: 7900, B: SLOTS - 8000}
    assert topology.replicas == {B: {C}}
    assert topology.epoch == 7


def test_a_cluster_without_slots_has_no_shards() -> None:
    topology = Topology.from_replies([], {}, ASKED)
    assert (topology.shards(), set(topology.owners()), topology.epoch) == ({}, {None}, UNKNOWN_EPOCH)


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        (b"10.0.0.9", [], "10.0.0.9"),
        (b"", [], ASKED.host),
        (None, [], ASKED.host),
        (b"?", [], ASKED.host),
        (b"?", [[b"ip", b"10.0.0.8"]], "10.0.0.8"),
        (b"node-1.example", [[b"ip", b"10.0.0.8"]], "node-1.example"),
        (b"fd00::1", [], "fd00::1"),
    ],
)
def test_a_node_without_an_address_has_that_of_the_node_that_was_asked(
    host: bytes | None, more: list[Any], expected: str
) -> None:
    topology = Topology.from_replies([[0, SLOTS - 1, [host, 6379, b"id", *more]]], {}, ASKED)
    assert list(topology.shards()) == [NodeAddress(expected, 6379)]


@pytest.mark.parametrize(
    "reply",
    [
        b"text",
        5,
        None,
        [[0]],
        [[0, 1]],
        [[0, 1, b"x"]],
        [[0, 1, []]],
        [[0, SLOTS, node(A)]],
        [[5, 4, node(A)]],
        [[0, 1, [A.host, b"p"]]],
    ],
)
def test_an_unusual_reply_is_one_clear_error(reply: Any) -> None:
    with pytest.raises(ValueError, match="CLUSTER SLOTS has an unusual reply"):
        Topology.from_replies(reply, {}, ASKED)


@pytest.mark.parametrize(
    ("slots", "epoch", "is_as_good"),
    [
        (SLOTS, 7, True),
        (SLOTS, 8, True),
        (SLOTS, UNKNOWN_EPOCH, True),
        (SLOTS, 6, False),
        (0, 7, False),  # a node that was taken out of the cluster keeps the epoch
        (SLOTS - 1, 8, False),
    ],
)
def test_an_answer_with_fewer_slots_or_an_older_epoch_is_not_enough(slots: int, epoch: int, is_as_good: bool) -> None:
    known = topology(SLOTS, 7)
    assert topology(slots, epoch).is_as_good_as(known) is is_as_good


def test_the_first_answer_is_enough_if_every_slot_has_a_master() -> None:
    assert topology(SLOTS, 0).is_as_good_as(None)
    assert not topology(SLOTS - 1, 9).is_as_good_as(None)
    # Where slots are known to have no master, answers that say so are enough.
    assert topology(SLOTS - 1, 9).is_as_good_as(topology(SLOTS - 1, 9))


def topology(slots: int, epoch: int) -> Topology:
    return Topology(ranges=[SlotRange(0, slots - 1, A)] if slots else [], epoch=epoch)


def test_keys_with_one_hash_tag_have_one_slot() -> None:
    assert slot_of("bcs:{b}:3:facts") == slot_of("{b}") == slot_of("b")
    assert slot_of("123456789") == 12739  # the example of the specification


def test_an_ipv6_address_has_brackets() -> None:
    assert [str(NodeAddress("fd00::1", 1)), str(A)] == ["[fd00::1]:1", "10.0.0.1:7001"]
