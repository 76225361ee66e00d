"""Which master counts when Sentinels do not agree."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.storage.redis.errors import UnusableServer
from bcs.storage.redis.sentinel import NamedMaster, master_of, named_master

OLD = NamedMaster(host="old", port=1, epoch=3)
NEW = NamedMaster(host="new", port=2, epoch=4)
OLD_DOWN, NEW_DOWN = (NamedMaster(host=one.host, port=one.port, epoch=one.epoch, down=True) for one in (OLD, NEW))
SILENT = NamedMaster(host="old", port=1)
SILENT_NEW = NamedMaster(host="new", port=2)
LOST = RedisConnectionError("lost")


@pytest.mark.parametrize(
    ("answers", "master"),
    [
        ([OLD], OLD),
        ([OLD, OLD, NEW], NEW),
        ([NEW, OLD_DOWN], NEW),
        ([OLD_DOWN, OLD], OLD),  # one Sentinel does not reach it
        ([SILENT, LOST, TimeoutError()], SILENT),
        ([SILENT, NEW], NEW),
        ([SILENT, SILENT_NEW, SILENT_NEW], SILENT_NEW),  # without epochs, most of them are right
    ],
)
def test_the_newest_answer_counts(answers: list[NamedMaster | Exception], master: NamedMaster) -> None:
    for order in (answers, answers[::-1]):
        assert master_of(named(order), "main") == master


@pytest.mark.parametrize(
    ("answers", "master"),
    [
        ([OLD, LOST, TimeoutError()], NEW),  # it was cut off during the failover that the others made
        ([OLD_DOWN, LOST, LOST], NEW),
        ([OLD, OLD, LOST], OLD),  # the Sentinels were made anew
        ([OLD], OLD),
        ([SILENT, LOST, LOST], NEW),
    ],
)
def test_a_minority_that_is_older_than_what_is_known_changes_nothing(
    answers: list[NamedMaster | Exception], master: NamedMaster
) -> None:
    assert master_of(named(answers), "main", NEW) == master


@pytest.mark.parametrize(
    ("answers", "problem", "answered", "for_good"),
    [
        ([OLD_DOWN, OLD_DOWN], "do not reach the master of the service 'main'", True, False),
        ([NEW_DOWN, OLD], "do not reach the master of the service 'main'", True, False),
        ([LOST, TimeoutError()], "no Sentinel of BCS_REDIS_URL answers (s0: ConnectionError: lost; s1: ", False, False),
        ([TimeoutError(), TimeoutError()], "answers (it did not answer in time)", False, False),
        ([UnusableServer("no"), LOST], "names the master of the service 'main' (s0: no; s1: ", True, False),
        ([UnusableServer("no", for_good=True)] * 2, "names the master of the service 'main' (no)", True, True),
        ([UnusableServer("no", for_good=True), LOST], "names the master", True, False),
    ],
)
def test_without_a_master_the_reason_is_named(
    answers: list[NamedMaster | Exception], problem: str, answered: bool, for_good: bool
) -> None:
    with pytest.raises(UnusableServer) as refusal:
        master_of(named(answers), "main")
    assert problem in str(refusal.value)
    assert (refusal.value.answered, refusal.value.for_good) == (answered, for_good)


@pytest.mark.parametrize(
    ("state", "epoch", "down"),
    [
        ([b"ip", b"h", b"port", b"7", b"flags", b"master", b"config-epoch", b"5"], 5, False),
        ([b"ip", b"h", b"port", b"7", b"flags", b"s_down,master", b"config-epoch", b"5"], 5, True),
        ([b"ip", b"h", b"port", b"7", b"flags", b"master,o_down", b"config-epoch", b"5"], 5, True),
        ([b"ip", b"former", b"port", b"6", b"flags", b"master,o_down", b"config-epoch", b"5"], 5, False),
        (NoPermissionError("no right"), -1, False),
        (None, -1, False),
    ],
)
def test_the_replies_of_a_sentinel_are_read(state: object, epoch: int, down: bool) -> None:
    assert named_master([b"h", b"7"], state) == NamedMaster(host="h", port=7, epoch=epoch, down=down)


@pytest.mark.parametrize(
    ("address", "state", "problem", "for_good"),
    [
        (None, None, "does not know the service", False),
        (AuthenticationError("no"), None, "BCS_REDIS_SENTINEL_PASSWORD", False),
        (NoPermissionError("no"), None, "BCS_REDIS_SENTINEL_USERNAME lacks a right", False),
        (ResponseError("unknown command 'SENTINEL', with args beginning with: 'x'"), None, "'SENTINEL')", True),
        (ResponseError("BUSY with a script"), None, "it is busy with a script", False),
        (b"OK", None, "not a Sentinel (an unusual reply", True),
        ([], None, "not a Sentinel (an unusual reply", True),
        ([b"h", b"x"], None, "not a Sentinel (an unusual reply", True),
        ([b"h", b"7"], [b"ip"], "not a Sentinel (an unusual reply", True),
    ],
)
def test_what_is_no_answer_of_a_sentinel_is_named(address: object, state: object, problem: str, for_good: bool) -> None:
    with pytest.raises(UnusableServer) as refusal:
        named_master(address, state)
    assert problem in str(refusal.value)
    assert refusal.value.for_good is for_good


def named(answers: list[NamedMaster | Exception]) -> dict[str, NamedMaster | Exception]:
    return {f"s{number}": answer for number, answer in enumerate(answers)}
