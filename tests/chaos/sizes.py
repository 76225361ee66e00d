"""How much each row of the chaos suite does: sized down by default, in full with ``BCS_TEST_CHAOS=full``."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The numbers of the table in docs/guarantees.md; rows are numbered as there."""

    seeds: int  # rows 1 to 3: schedules, each with so many events and so many kills of each kind of actor
    events: int
    kills_of_each_kind: int
    crashes_at_each_point: int  # row 4
    lost_replies: int  # row 5
    contended_facts: int  # row 6
    pending_asks: int  # row 7
    timed_restarts: int  # row 8
    outage_seconds: float  # row 10
    joins_and_leaves: int  # row 11
    rebalanced_events: int
    stops: int  # row 12
    overload_seconds: float  # row 13
    counted_restarts: int  # row 14
    poisoned_among: int  # row 15: one event in a thousand of so many is malformed
    record_strikes: int  # row 16
    record_outage_seconds: float  # row 17
    flushed_events: int  # row 18: and at least as many resolutions
    store_outages: int  # row 19: of each kind


FULL = Sizes(
    seeds=30,
    events=10_000,
    kills_of_each_kind=100,
    crashes_at_each_point=50,
    lost_replies=1_000,
    contended_facts=2_000,
    pending_asks=500,
    timed_restarts=200,
    outage_seconds=60.0,
    joins_and_leaves=20,
    rebalanced_events=10_000,
    stops=50,
    overload_seconds=60.0,
    counted_restarts=1_000,
    poisoned_among=10_000,
    record_strikes=60,
    record_outage_seconds=60.0,
    flushed_events=10_000,
    store_outages=10,
)
QUICK = Sizes(
    seeds=2,
    events=1_000,
    kills_of_each_kind=6,
    crashes_at_each_point=2,
    lost_replies=50,
    contended_facts=400,
    pending_asks=500,
    timed_restarts=20,
    outage_seconds=2.5,
    joins_and_leaves=4,
    rebalanced_events=1_000,
    stops=3,
    overload_seconds=4.0,
    counted_restarts=30,
    poisoned_among=2_000,
    record_strikes=3,
    record_outage_seconds=2.0,
    flushed_events=1_000,
    store_outages=1,
)

IN_FULL = os.environ.get("BCS_TEST_CHAOS") == "full"
# Sized down, the rows run beside whatever else a machine for CI does; in full size their bounds on time are exact.
TIME_ALLOWANCE = 1.0 if IN_FULL else 4.0
SIZES = FULL if IN_FULL else QUICK
