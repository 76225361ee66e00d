"""Which master counts when Sentinels do not agree."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.storage.redis.errors import UnusableServer
from bcs.storage.redis.sentinel import NamedMaster, master_of

OLD = NamedMaster(host="old", port=1, epoch=3)
NEW = NamedMaster(host="new", port=2, epoch=4)
OLD_DOWN, NEW_DOWN = (NamedMaster(host=one.host, port=one.port, epoch=one.epoch, down=True) for one in (OLD, NEW))
SILENT = NamedMaster(host="old", port=1)
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
    ],
)
def test_the_newest_answer_counts(answers: list[NamedMaster | Exception], master: NamedMaster) -> None:
    for order in (answers, answers[::-1]):
        assert master_of(named(order), "main") == master


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


def named(answers: list[NamedMaster | Exception]) -> dict[str, NamedMaster | Exception]:
    return {f"s{number}": answer for number, answer in enumerate(answers)}
