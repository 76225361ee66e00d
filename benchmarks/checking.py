"""What it costs an answer to look at the caller's token, and at limits for each caller.

Two processes with the same code differ by more than that, because of where their memory lies. So each round starts new
processes, and the median of the turns' differences counts.
"""

from __future__ import annotations

import json
from statistics import median

from benchmarks.measured import Measured, middle
from benchmarks.resolving import ESSAYS, body, measure
from benchmarks.world import World, with_settings

ROUNDS = 7

_TOKEN = "a-token-for-the-benchmark-of-64-characters-as-openssl-rand-makes-it"  # noqa: S105 (of nobody)

# So high that they refuse nothing.
_LIMITS = {
    "BCS_HTTP_MAX_CONNECTIONS_PER_ADDRESS": 1_000,
    "BCS_HTTP_RATE_PER_SECOND": 1_000_000,
    "BCS_HTTP_NEW_BATCHES_PER_MINUTE": 1_000_000_000,
}


async def measured(world: World, seconds: float) -> tuple[list[Measured], dict[str, float]]:
    """Warm answers of a process without checks, of one that asks for a token, and of one with limits.

    :returns: the rows, and how many microseconds of CPU each check adds.
    """
    await world.know("checked", ESSAYS, spellchecked=False)
    callers = world.directory / "callers.json"
    callers.write_text(json.dumps({"callers": [{"name": "bench", "scopes": ["resolve"], "tokens": [_TOKEN]}]}))
    asked = body("checked")
    paths = [f"resolve, warm, {checks}" for checks in ("no checks of callers", "with a token", "with limits")]
    rows: list[list[Measured]] = [[], [], []]
    for number in range(ROUNDS):
        async with (
            with_settings(world, f"unchecked-{number}") as plain,
            with_settings(world, f"asking-{number}", BCS_HTTP_TOKENS_FILE=callers) as asking,
            with_settings(world, f"limited-{number}", **_LIMITS) as limited,
        ):
            servers = [(plain, ""), (asking, _TOKEN), (limited, "")]
            for server, token in servers:
                await measure(world, "warm-up", asked, seconds / 4, server=server, token=token)
            # Short turns, forth and back: the machine's speed changes from second to second.
            for order in (0, 1, 2), (2, 1, 0), (0, 1, 2), (2, 1, 0):
                for place in order:
                    server, token = servers[place]
                    row = await measure(world, paths[place], asked, seconds / 8, server=server, token=token)
                    rows[place].append(row)
    figures = {}
    for name, checked in (("a token", rows[1]), ("limits", rows[2])):
        differences = [with_it.cpu_us - without.cpu_us for without, with_it in zip(rows[0], checked, strict=True)]
        figures[f"microseconds of CPU that {name} adds to an answer"] = median(differences)
    return [middle(row) for row in rows], figures
