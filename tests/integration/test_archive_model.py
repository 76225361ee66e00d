"""Whatever happens in whatever order: the model, Redis and PostgreSQL agree, and no answer is wrong."""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from bcs.config.pipelines import load_pipelines
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseReported
from bcs.domain.progress import summarize
from bcs.domain.resolution import resolve
from bcs.domain.state import BatchState, delta_of
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import AT_US
from tests.support.laws import LAW

PIPELINES = load_pipelines(None)
phases = st.sampled_from(["spellcheck", "ai_feedback"])
essays = st.sampled_from(["e1", "e2", "NUL \0 and \\0"])
outcomes = st.sampled_from([Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED])
# So few that ties are common.
instants = st.integers(AT_US, AT_US + 3)
facts = st.one_of(
    st.builds(EssayPhaseEnded, phases, essays, outcomes, instants),
    st.builds(PhaseReported, phases, outcomes, instants),
)
registrations = st.builds(
    EssaysRegistered, st.lists(essays, unique=True).map(tuple), st.sampled_from([0, 1, 3, 10**20]), instants
)
batches = st.sampled_from(["a", "b"])


class Machine(RuleBasedStateMachine):
    """One service for all examples; each example has its own batches."""

    portal: ClassVar[BlockingPortal]
    setup: ClassVar[ServiceWithArchive]

    def __init__(self) -> None:
        super().__init__()
        self.example = uuid.uuid4().hex
        self.told: dict[str, list[tuple[Fact, ...]]] = {"a": [], "b": []}
        self.redis_up = self.database_up = True
        self.snapshot: Any = None
        # What Redis has forgotten, and was not asked for since while PostgreSQL was there.
        self.forgotten: set[str] = set()

    @precondition(lambda self: self.redis_up)
    @rule(batch=batches, facts=st.lists(facts, min_size=1, max_size=4))
    def notify(self, batch: str, facts: list[Fact]) -> None:
        self.do(self.setup.apply, self.named(batch), facts)
        self.told[batch].append(tuple(facts))
        self.remember(batch)

    # A batch that is registered again, while the record is away, looks like one that begins then.
    @precondition(lambda self: self.redis_up and (self.database_up or not self.forgotten))
    @rule(batch=batches, fact=registrations)
    def register(self, batch: str, fact: Fact) -> None:
        self.notify(batch, [fact])

    @rule(batch=batches)
    def resolve(self, batch: str) -> None:
        answer = self.do(self.setup.resolve, self.named(batch))
        model = self.model(batch)
        if not self.redis_up and model.expected is None:
            # The record may have it in part only, as long as it does not know where it began.
            assert answer.status == 503, answer.body
            return
        if answer.status == 503 and self.redis_up and self.database_up:
            # A connection that broke while Redis was away is found out by whoever uses it next, and PostgreSQL does not
            # answer for a batch whose registration it does not have.
            assert model.expected is None, answer.body
            answer = self.do(self.setup.resolve_in_the_end, self.named(batch))
        if answer.status == 503:
            # Without the record nothing is said of a batch that may be old.
            assert not self.database_up, answer.body
            assert model.expected is None or batch in self.forgotten, answer.body
            return
        assert answer.status == 200, answer.body
        # A connection that broke while Redis was away is found out by whoever uses it next: then PostgreSQL answers.
        assert answer.json["source"] == "postgresql" or self.redis_up
        expected = resolve(PIPELINES, "ai_feedback", summarize(model, LAW, 0))
        assert answer.json["final_pipeline"] == list(expected.to_run)
        assert answer.json["pruned_phases"] == list(expected.pruned)
        self.remember(batch)

    @precondition(lambda self: self.redis_up and self.database_up)
    @rule()
    def flush(self) -> None:
        # What waits for the record is lost with Redis, which is why it is drained first: see docs/guarantees.md.
        self.drain()
        self.do(self.setup.flush)
        self.forgotten |= self.told.keys()

    @precondition(lambda self: self.redis_up and self.database_up)
    @rule()
    def remember_redis(self) -> None:
        self.snapshot = self.do(self.setup.snapshot)

    @precondition(lambda self: self.snapshot is not None and self.redis_up and self.database_up)
    @rule()
    def roll_redis_back(self) -> None:
        self.drain()
        self.do(self.setup.roll_back, self.snapshot)
        self.forgotten |= self.told.keys()

    @rule(actor=st.sampled_from(["archive", "batches", "http"]))
    def kill(self, actor: str) -> None:
        self.do(self.setup.kill, actor)

    @precondition(lambda self: self.redis_up)
    @rule()
    def restart(self) -> None:
        self.do(self.setup.restart)
        if self.database_up:
            self.drain()

    @precondition(lambda self: self.database_up and self.redis_up)
    @rule(how=st.sampled_from(["refuse", "freeze"]))
    def lose_database(self, how: str) -> None:
        self.lose(self.setup.database_proxy, how)
        self.database_up = False

    @precondition(lambda self: not self.database_up)
    @rule()
    def find_database(self) -> None:
        self.find(self.setup.database_proxy)
        self.database_up = True
        self.drain()

    @precondition(lambda self: self.redis_up and self.database_up)
    @rule(how=st.sampled_from(["refuse", "freeze"]))
    def lose_redis(self, how: str) -> None:
        self.drain()
        self.lose(self.setup.redis_proxy, how)
        self.redis_up = False

    @precondition(lambda self: not self.redis_up)
    @rule()
    def find_redis(self) -> None:
        self.find(self.setup.redis_proxy)
        self.do(self.setup.wait_for_redis)
        self.redis_up = True

    def teardown(self) -> None:
        """All three agree, also once Redis has forgotten everything; and the history has each thing once."""
        if not self.redis_up:
            self.find_redis()
        if not self.database_up:
            self.find_database()
        self.drain()
        for _ in range(2):
            for batch in self.told:
                model = self.model(batch)
                assert self.do(self.setup.archive.state, self.named(batch)) == model
                assert self.do(self.setup.state, self.named(batch)) == model
                self.resolve(batch)
                assert sorted(self.do(self.setup.history_facts, self.named(batch)), key=repr) == sorted(
                    self.told[batch], key=repr
                )
            self.do(self.setup.flush)

    def model(self, batch: str) -> BatchState:
        return delta_of(fact for group in self.told[batch] for fact in group)

    def named(self, batch: str) -> str:
        return f"{batch} {self.example}"

    def lose(self, proxy: FaultProxy, how: str) -> None:
        if how == "freeze":
            self.portal.call(proxy.freeze)
        else:
            self.portal.call(proxy.refuse)
            self.portal.call(proxy.cut)

    def find(self, proxy: FaultProxy) -> None:
        self.portal.call(proxy.thaw)
        self.portal.call(proxy.accept)

    def drain(self) -> None:
        self.do(self.setup.wait_for_archive)

    def remember(self, batch: str) -> None:
        if self.redis_up and self.database_up:
            self.forgotten.discard(batch)

    def do(self, function: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
        return self.portal.call(function, *arguments)


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[type[Machine]]:
    setup = ServiceWithArchive(tmp_path_factory.mktemp("record"), database_url)
    with (
        pytest.MonkeyPatch.context() as patch,
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(setup),
    ):
        patch.setattr(Machine, "portal", portal, raising=False)
        patch.setattr(Machine, "setup", setup, raising=False)
        yield Machine


def test_the_model_redis_and_postgresql_agree(machine: type[Machine]) -> None:
    examples = os.environ.get("BCS_TEST_RECORD_EXAMPLES")
    many = settings(
        deadline=None,
        max_examples=int(examples or 4),
        stateful_step_count=25,
        # The few of the usual run are always the same; who asks for more gets others.
        derandomize=examples is None,
        database=None,
    )
    run_state_machine_as_test(machine, settings=many)
