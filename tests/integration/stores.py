"""Facts for tests of the stores, and views of a gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.progress import BatchSummary, summarize
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.ports import Committed
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.multiplexer import Replies
from bcs.storage.redis.nodes import Node
from tests.support.laws import LAW
from tests.support.waiting import wait_until

PHASES = ("spellcheck", "nlp")
BREAKER_FAILURES = 3
MakeGateway = Callable[..., RedisGateway]
MakeStore = Callable[..., RedisStateStore]
DELTA = delta_of([EssaysRegistered(("a",), 1, 0), EssayPhaseEnded("nlp", "a", Outcome.COMPLETED, 1)])


class ClusterByKey(ClusterNodes):
    """A cluster in the place of one server: commands go to the node that has the first key with a hash tag."""

    async def call(self, *commands: Command) -> Replies:
        return await self._node_for(commands).call(*commands)

    async def call_multiplexed(self, *commands: Command) -> Replies:
        return await self._node_for(commands).call_multiplexed(*commands)

    def _node_for(self, commands: Sequence[Command]) -> Node:
        words = (word for command in commands for word in command)
        key = next((word for word in words if isinstance(word, str) and "{" in word and " " not in word), None)
        return self.at(key or "")


class ByTransaction(RedisStateStore):
    """Commits as where Redis refuses scripts."""

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        self._scripts_refused_until = inf
        return await super().commit(batch_id, delta)


def completed(essay: str, at_us: int = 1, phase: str = "spellcheck") -> EssayPhaseEnded:
    return EssayPhaseEnded(phase, essay, Outcome.COMPLETED, at_us)


def failed(essay: str, at_us: int, phase: str = "spellcheck") -> EssayPhaseEnded:
    return EssayPhaseEnded(phase, essay, Outcome.FAILED, at_us)


def same_but_for_the_version(summary: BatchSummary, state: BatchState) -> bool:
    return summary == summarize(state, LAW, summary.version)


async def echo(gateway: RedisGateway, text: bytes = b"hello") -> bool:
    return await gateway.call(("ECHO", text)) == [text]


async def fails(gateway: RedisGateway, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            await echo(gateway)


async def until_it_answers(gateway: RedisGateway) -> None:
    await wait_until(lambda: echo(gateway), ignoring=(StoreUnavailable,))
