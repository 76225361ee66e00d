"""A process that writes its share of facts to a batch, against others."""

import json
import sys
from dataclasses import asdict, dataclass
from random import Random
from time import monotonic

import anyio

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseReported
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.state import delta_of
from bcs.storage.redis.batch_store import RedisStateStore
from tests.chaos.redis_servers import AnyRedis, connections_to
from tests.integration.stores import ByTransaction
from tests.support.laws import LAW

READY, GO = "ready\n", "go\n"
_BEGINNING_US = 1_767_225_600_000_000
_TIMES = 1_000  # so few that facts about the same essay also have the same time, now and then
_CONTESTED_ESSAYS = 20


@dataclass(frozen=True)
class Share:
    """What one process is to write: every `writers`-th of the facts that come from the seed."""

    redis_url: str
    key_prefix: str
    batch_id: str
    seed: int
    facts: int
    writers: int
    writer: int
    by_transaction: bool

    def as_argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Commit:
    """What one commit took."""

    seconds: float
    conflicts: int
    fallback: bool


def drawn_facts(seed: int, count: int) -> list[Fact]:
    """Facts about one batch: half of them say what no other does, half contradict each other, and the newest wins."""
    chance = Random(seed)
    phases = sorted(PLATFORM_PHASES)

    def draw(number: int) -> Fact:
        at_us = _BEGINNING_US + chance.randrange(_TIMES)
        contested = f"contested-{chance.randrange(_CONTESTED_ESSAYS)}"
        essay = chance.choice([f"essay-{number}", contested])
        outcome = chance.choice(list(Outcome))
        kind = chance.random()
        if kind < 0.02:
            return EssaysRegistered((essay, contested), number, at_us)
        if kind < 0.05:
            return PhaseReported(chance.choice(phases), outcome, at_us)
        return EssayPhaseEnded(chance.choice(phases), essay, outcome, at_us)

    return [draw(number) for number in range(count)]


def open_store(redis_url: str, key_prefix: str, *, by_transaction: bool = False) -> tuple[AnyRedis, RedisStateStore]:
    """The store as the service has it by default.

    :param by_transaction: commit as where Redis refuses scripts.
    """
    kind = ByTransaction if by_transaction else RedisStateStore
    nodes = connections_to(
        redis_url, max_connections=32, deadline_seconds=2.0, breaker_failures=5, breaker_open_seconds=1.0
    )
    return nodes, kind(nodes, law=LAW, key_prefix=key_prefix, ttl_seconds=604_800)


async def write(share: Share) -> list[Commit]:
    """Commit the share, each fact on its own."""
    nodes, store = open_store(share.redis_url, share.key_prefix, by_transaction=share.by_transaction)
    commits: list[Commit] = []
    try:
        for fact in drawn_facts(share.seed, share.facts)[share.writer :: share.writers]:
            began = monotonic()
            committed = await store.commit(share.batch_id, delta_of([fact]))
            commits.append(Commit(monotonic() - began, committed.conflicts, committed.fallback))
    finally:
        await nodes.aclose()
    return commits


def contend() -> None:
    """Say that all is loaded, begin together with the others, and report."""
    share = Share(**json.loads(sys.argv[1]))
    sys.stdout.write(READY)
    sys.stdout.flush()
    if sys.stdin.readline() != GO:
        raise SystemExit("nobody is there any more who wants this")
    commits = anyio.run(write, share, backend_options={"use_uvloop": True})
    json.dump([asdict(commit) for commit in commits], sys.stdout)
