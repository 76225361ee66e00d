"""What the archive, or a cluster, costs the usual work: the same without it and with it, in turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from benchmarks import ingesting, resolving
from benchmarks.measured import Measured, middle
from benchmarks.resolving import CONNECTIONS, EACH_ITS_OWN, ESSAYS, body
from benchmarks.world import World

BATCHES = 400
"""Over so many batches questions are spread, and with them over the streams and the nodes of Redis."""

_SPREAD = (("one batch", 1), ("200 batches", 200), ("2000 batches", 2000))
_ANSWERS = (("warm", "kept-warm"), ("one phase pruned", "kept-pruned"))
_Measurement = Callable[[World, str, int], Awaitable[Measured]]

Rounds = Sequence[tuple[list[Measured], list[Measured]]]
"""For each kind of work what was measured without and within, round by round."""


async def measured(
    without: tuple[World, str], within: tuple[World, str], seconds: float, rounds: int, events: int
) -> tuple[list[Measured], dict[str, float]]:
    """Answers and events, until all that is owed for them is published and on record.

    :param without: a world and how it is called; so is `within`.
    :returns: see `medians`.
    """
    return medians(await in_turns(without, within, seconds, rounds, events), without[1])


def medians(rounds: Rounds, without: str) -> tuple[list[Measured], dict[str, float]]:
    """The rows, and for each kind of work the median of the rounds' ratios of CPU, within to without.

    :param without: how that world is called.
    """
    rows: list[Measured] = []
    ratios: dict[str, float] = {}
    for first, second in rounds:
        rows += middle(first), middle(second)
        name = f"CPU, {second[0].path} / {without}"
        ratios[name] = median(after.cpu_us / before.cpu_us for before, after in zip(first, second, strict=True))
    return rows, ratios


async def in_turns(
    without: tuple[World, str],
    within: tuple[World, str],
    seconds: float,
    rounds: int,
    events: int,
    *,
    callers: Sequence[int] = (CONNECTIONS,),
) -> Rounds:
    """Measure two worlds in turns.

    :param callers: how many ask at the same time, for each measurement of answers.
    """

    async def asked(world: World, path: str, batch: str, connections: int = CONNECTIONS) -> Measured:
        request = body(f"{batch}-{{number:12}}", EACH_ITS_OWN)
        return await resolving.measure(
            world, path, request, seconds, numbers=BATCHES, settle=True, connections=connections
        )

    def answered(kind: str, batch: str, connections: int) -> _Measurement:
        at_a_time = "" if connections == CONNECTIONS else f"{connections} at a time, "

        async def measurement(world: World, how: str, _turn: int) -> Measured:
            return await asked(world, f"resolve, {kind}, {at_a_time}{how}", batch, connections)

        return measurement

    def ingested(spread: str, batches: int) -> _Measurement:
        async def measurement(world: World, how: str, turn: int) -> Measured:
            path = f"ingest, {spread}, {how}"
            return await ingesting.measure(world, path, f"kept-{turn}-{batches}", events, batches)

        return measurement

    worlds = (without, within)
    answers = [answered(kind, batch, each) for each in callers for kind, batch in _ANSWERS]
    measurements = [*answers, *(ingested(*spread) for spread in _SPREAD)]
    measured: Rounds = [([], []) for _ in measurements]
    for world, _ in worlds:
        await world.know_many("kept-warm", BATCHES, ESSAYS)
        await world.know_many("kept-pruned", BATCHES, ESSAYS, spellchecked=True)
        await ingesting.measure(world, "warm-up", "kept-warm-up", max(1, events // 20), 10)
        await asked(world, "warm-up", "kept-warm")
    for turn in range(rounds):
        for measurement, rows in zip(measurements, measured, strict=True):
            # The first of a pair meets another machine than the second; so they change places.
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                world, how = worlds[place]
                rows[place].append(await measurement(world, how, turn))
    return measured
