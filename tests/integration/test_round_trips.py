"""Round trips that are shared: by everybody who is there, with harm to nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import anyio
import pytest

from bcs.domain.errors import StoreUnavailable
from bcs.store.redis_gateway import RedisSession
from bcs.store.round_trips import Command, Parcel, RoundTrips
from tests.integration.stores import MakeGateway

pytestmark = pytest.mark.anyio


class Carrier:
    """Carries parcels when it is let, and notes how many went together."""

    def __init__(self) -> None:
        self.together: list[int] = []
        self.gate = anyio.Event()
        self.failure: Exception | None = None

    async def carry(self, parcels: Sequence[Parcel]) -> None:
        self.together.append(len(parcels))
        await self.gate.wait()
        if self.failure:
            raise self.failure
        for parcel in parcels:
            parcel.replies = [command[0] for command in parcel.commands]


async def test_who_comes_in_one_turn_goes_together_and_who_comes_late_with_the_next() -> None:
    carrier = Carrier()
    trips, answers = RoundTrips(carrier.carry, at_a_time=1), list[object]()

    async def send(name: str) -> None:
        answers.append((name, await trips.send([(name,), ("x",)])))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(send, f"first-{number}")
        await anyio.wait_all_tasks_blocked()
        for number in range(3):
            group.start_soon(send, f"second-{number}")
            await anyio.wait_all_tasks_blocked()
        carrier.gate.set()
    assert carrier.together == [5, 3]
    names = [f"first-{number}" for number in range(5)] + [f"second-{number}" for number in range(3)]
    assert answers == [(name, [name, "x"]) for name in names]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_who_gives_up_takes_nobody_along(cancelled: int) -> None:
    carrier = Carrier()
    trips, answers = RoundTrips(carrier.carry, at_a_time=1), dict[int, object]()
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def send(number: int) -> None:
        with scopes[number]:
            answers[number] = await trips.send([(number,)])

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(send, number)
        await anyio.wait_all_tasks_blocked()
        scopes[cancelled].cancel()
        carrier.gate.set()
    assert {number: answers[number] for number in range(3) if number != cancelled} == {
        number: [number] for number in range(3) if number != cancelled
    }


async def test_a_failure_is_told_to_each_and_over_with_that() -> None:
    carrier = Carrier()
    carrier.failure = StoreUnavailable("redis", "test")
    trips, failures = RoundTrips(carrier.carry, at_a_time=1), list[StoreUnavailable]()

    async def send() -> None:
        with pytest.raises(StoreUnavailable) as raised:
            await trips.send([("x",)])
        failures.append(raised.value)

    carrier.gate.set()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(send)
    assert len({id(failure) for failure in failures}) == 3, "an exception that several raise grows for ever"
    carrier.failure = None
    assert await trips.send([("y",)]) == ["y"]


async def test_many_readers_need_few_round_trips_and_a_refusal_is_its_sender_s_alone(
    make_gateway: MakeGateway, redis_url: str, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = 0
    exchange = RedisSession.exchange

    async def counted(self: RedisSession, commands: Sequence[Command]) -> list[object]:
        nonlocal trips
        trips += 1
        return await exchange(self, commands)

    name = f"{redis_key_prefix}name"
    gateway = make_gateway(urlsplit(redis_url).netloc)
    await gateway.call(("SET", name, "value", "PX", 60_000))
    monkeypatch.setattr(RedisSession, "exchange", counted)
    refused: list[Exception] = []

    async def refuse() -> None:
        try:
            await gateway.share(("MULTI",), ("LPUSH", name, "x"), ("EXEC",))
        except Exception as error:  # noqa: BLE001 (whatever it is)
            refused.append(error)

    async def get() -> None:
        assert await gateway.share(("GET", name)) == [b"value"]

    async with anyio.create_task_group() as group:
        for what in [get] * 20 + [refuse] + [get] * 20:
            group.start_soon(what)
    assert [str(error).partition(" ")[0] for error in refused] == ["WRONGTYPE"]
    assert trips == 1
