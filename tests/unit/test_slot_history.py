"""Which complete stamps are valid when a slot of a Redis Cluster comes back to a server."""

from __future__ import annotations

from itertools import pairwise

from bcs.storage.redis.slot_history import SlotHistory


def moves(*servers: str, failovers: frozenset[int] = frozenset()) -> SlotHistory:
    """The history of a slot that was on some servers, one after another.

    :param servers: `old>new` is a server that got another identity while it had the slot.
    :param failovers: after which of the servers, by their numbers, a replica took over.
    """
    history = SlotHistory()
    for number, (server, target) in enumerate(pairwise(servers)):
        at_the_end, at_the_start = server.rpartition(">")[2], target.partition(">")[0]
        history.move(at_the_end, to_replica=number in failovers, target=at_the_start)
    return history


def test_a_slot_that_was_elsewhere_for_a_while_needs_no_backfill() -> None:
    assert moves("a", "b", "a").name("a") == "a"
    assert moves("a", "b", "c", "a", "b").name("b") == "b"


def test_a_server_has_another_name_if_facts_may_be_lost_meanwhile() -> None:
    restarted = moves("a", "b>b2", "a").name("a")
    assert restarted != "a"
    assert restarted == moves("a", "b>b2", "a").name("a")  # the same for all processes that saw it
    assert moves("a", "b", "c", "a", failovers=frozenset({1})).name("a") not in ("a", restarted)


def test_a_server_that_never_had_the_slot_has_its_own_name() -> None:
    assert moves("a", "b>b2", "c").name("c") == "c"
    assert SlotHistory().name("a") == "a"


def test_an_unknown_server_may_have_lost_facts() -> None:
    assert moves("a", "", "a").name("a") == "a~unknown"
    history = SlotHistory()
    history.move("a", to_replica=False, target="")
    history.learn("b")
    history.learn("b2")  # this is noticed at the end
    history.move("b", to_replica=False, target="a")
    assert history.name("a") == "a"
    assert history.name("") == ""


def test_what_is_remembered_is_bounded() -> None:
    history = moves(*map(str, range(1000)))
    assert len(history._left) <= 20
