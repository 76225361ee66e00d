"""How much each row of the chaos suite does: quick at every commit, in full at a release (``BCS_TEST_CHAOS=full``)."""

from dataclasses import dataclass

from tests.support.tiers import IN_FULL


@dataclass(frozen=True)
class Sizes:
    """The numbers of the table in docs/guarantees.md; rows are numbered as there."""

    seeds: tuple[int, ...]  # rows 1 to 3: schedules, each with so many events and so many kills of each kind of actor
    events: int
    kills_of_each_kind: int
    disasters: int
    crashes_at_each_point: int  # row 4
    deaths_at_each_point: int  # 0: one death, at one point
    lost_replies: int  # row 5
    contended_facts: int  # row 6
    writers: int
    pending_asks: int  # row 7
    rounds_of_asks: int
    timed_restarts: int  # row 8
    restarted_services: int  # at a time
    outage_seconds: float  # row 10
    cuts: int
    joins_and_leaves: int  # row 11
    rebalanced_events: int
    stops: int  # row 12
    overload_seconds: float  # row 13
    overload_requests: int  # what the process takes at a time, of requests and of events
    overload_events: int
    counted_restarts: int  # row 14
    poisoned_among: int  # row 15: one event in a thousand of so many is malformed
    record_events: int  # row 16
    record_strikes: int
    record_strikes_among_kills: int
    record_kills: int
    record_outage_seconds: float  # row 17
    flushed_events: int  # row 18: and at least as many resolutions
    store_events: int  # row 19
    store_outages: int  # of each kind
    store_outage_seconds: float


AT_A_RELEASE = Sizes(
    seeds=tuple(range(1, 31)),
    events=10_000,
    kills_of_each_kind=100,
    disasters=12,
    crashes_at_each_point=50,
    deaths_at_each_point=3,
    lost_replies=1_000,
    contended_facts=2_000,
    writers=8,
    pending_asks=500,
    rounds_of_asks=5,
    timed_restarts=200,
    restarted_services=10,
    outage_seconds=60.0,
    cuts=60,
    joins_and_leaves=20,
    rebalanced_events=10_000,
    stops=50,
    overload_seconds=60.0,
    overload_requests=64,
    overload_events=500,
    counted_restarts=1_000,
    poisoned_among=10_000,
    record_events=10_000,
    record_strikes=60,
    record_strikes_among_kills=3,
    record_kills=300,
    record_outage_seconds=60.0,
    flushed_events=10_000,
    store_events=5_000,
    store_outages=10,
    store_outage_seconds=5.0,
)
AT_A_COMMIT = Sizes(
    seeds=(2,),
    events=400,
    kills_of_each_kind=4,
    disasters=4,
    crashes_at_each_point=1,
    deaths_at_each_point=0,
    lost_replies=20,
    contended_facts=250,
    writers=4,
    pending_asks=500,
    rounds_of_asks=2,
    timed_restarts=2,
    restarted_services=1,
    outage_seconds=1.0,
    cuts=2,
    joins_and_leaves=4,
    rebalanced_events=400,
    stops=1,
    overload_seconds=1.5,
    overload_requests=16,
    overload_events=100,
    counted_restarts=16,
    poisoned_among=2_000,
    record_events=450,
    record_strikes=3,
    record_strikes_among_kills=1,
    record_kills=6,
    record_outage_seconds=1.0,
    flushed_events=150,
    store_events=200,
    store_outages=1,
    store_outage_seconds=0.2,
)

SIZES = AT_A_RELEASE if IN_FULL else AT_A_COMMIT
