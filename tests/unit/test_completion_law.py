"""The configurable part of the completion law: requirements, policies, and the fingerprint."""

from __future__ import annotations

from bcs.domain.law import CompleteWhen, CompletionLaw

SETTLED = CompleteWhen.EVERY_ESSAY_SETTLED
REQUIRES = {"a": (), "b": ("a",), "c": ("b",), "d": ("a", "c")}


def test_a_phase_without_a_policy_needs_every_essay_completed() -> None:
    law = CompletionLaw(REQUIRES, {"a": SETTLED})
    assert [law.policy(phase) for phase in ("a", "b")] == [SETTLED, CompleteWhen.EVERY_ESSAY_COMPLETED]


def test_what_a_phase_requires_is_known_directly_and_indirectly() -> None:
    law = CompletionLaw(REQUIRES)
    assert (law.requires("c"), law.upstream("c")) == (("b",), ("a", "b"))
    assert (law.requires("d"), law.upstream("d")) == (("a", "c"), ("a", "b", "c"))
    assert (law.requires("undefined"), law.upstream("undefined")) == ((), ())


def test_each_choice_that_may_change_an_answer_changes_the_fingerprint() -> None:
    laws = [
        CompletionLaw(REQUIRES),
        CompletionLaw(REQUIRES, require_registration=True),
        CompletionLaw(REQUIRES, {"b": SETTLED}),
        CompletionLaw(REQUIRES | {"c": ("a",)}),
        CompletionLaw(REQUIRES | {"e": ()}),
    ]
    assert len({law.fingerprint for law in laws}) == len(laws)


def test_the_fingerprint_does_not_depend_on_the_order_of_phases() -> None:
    turned = {phase: required[::-1] for phase, required in reversed(REQUIRES.items())}
    assert CompletionLaw(turned).fingerprint == CompletionLaw(REQUIRES).fingerprint
