"""The completion law, in stories of single batches."""

from __future__ import annotations

import pytest

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    repeat_key_of,
)
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.progress import BatchSummary, Evaluation, PhaseProgress, summarize
from bcs.domain.resolution import Decision, Reason, Resolution, resolve
from bcs.domain.state import delta_of

COMPLETED, FAILED = Outcome.COMPLETED, Outcome.FAILED
SUCCESS = "completed_successfully"
SPELLCHECK, NLP, CJ, FEEDBACK = "spellcheck", "nlp", "cj_assessment", "ai_feedback"
ESSAYS = ("e0", "e1", "e2")
REGISTERED = EssaysRegistered(ESSAYS, 3, 10)


def definitions(policy: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED) -> PipelineDefinitions:
    """The service's rules, and `ranking`, which requires spellcheck indirectly. All but spellcheck have the policy."""
    requires = {NLP: SPELLCHECK, CJ: SPELLCHECK, FEEDBACK: SPELLCHECK, "ranking": NLP}
    others = (Phase(name, (required,), complete_when=policy) for name, required in requires.items())
    return PipelineDefinitions([Phase(SPELLCHECK), *others])


def resolved(
    phase: str,
    *facts: Fact,
    policy: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED,
    require_registration: bool = False,
) -> Resolution:
    rules = definitions(policy)
    return resolve(rules, phase, summarize(delta_of(facts), rules.law(require_registration=require_registration), 1))


def decided(phase: str, *facts: Fact, require_registration: bool = False) -> Decision:
    return resolved(phase, *facts, require_registration=require_registration).decisions[-1]


def complete(phase: str, *facts: Fact, require_registration: bool = False) -> bool:
    law = definitions().law(require_registration=require_registration)
    return Evaluation(delta_of(facts), law).progress(phase).complete


def settled(phase: str, *facts: Fact) -> Decision:
    return resolved(phase, *facts, policy=CompleteWhen.EVERY_ESSAY_SETTLED).decisions[-1]


def checked(*essays: str, at_us: int = 20) -> list[Fact]:
    return [EssayPhaseEnded(SPELLCHECK, essay, COMPLETED, at_us) for essay in essays]


def cj(completed: tuple[str, ...], failed: tuple[str, ...] = (), at_us: int = 30) -> PhaseOutcome:
    """A CJ completion, with its own time; its status is success as soon as one essay succeeded."""
    return PhaseOutcome(CJ, SUCCESS, completed=completed, failed=failed, speaks_for_all=False, at_us=at_us)


def els(
    phase: str,
    completed: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    status: str = SUCCESS,
    at_us: int = 30,
) -> PhaseOutcome:
    """An ELS outcome, without its own time; a success without lists covers all essays."""
    speaks_for_all = status == SUCCESS and not completed and not failed
    key = repeat_key_of(phase, "one request", status, completed, failed)
    return PhaseOutcome(
        phase, status, completed=completed, failed=failed, speaks_for_all=speaks_for_all, at_us=at_us, repeat_key=key
    )


class TestOutcomeLists:
    def test_cj_runs_again_for_an_essay_that_its_success_does_not_name(self) -> None:
        resolution = resolved(CJ, REGISTERED, *checked(*ESSAYS), cj(("e0", "e1")))
        assert (resolution.to_run, resolution.pruned) == ((CJ,), (SPELLCHECK,))
        decision = resolution.decisions[-1]
        assert decision.reason is Reason.ESSAYS_LEFT_OUT
        assert decision.reason_text == (
            "2 of 3 essays have completed it, and 1 is not in the outcome of 1970-01-01T00:00:00.000030Z"
        )

    def test_nlp_runs_again_for_an_essay_that_its_success_does_not_name(self) -> None:
        resolution = resolved(NLP, REGISTERED, *checked(*ESSAYS), els(NLP, ("e0", "e2")))
        assert (resolution.to_run, resolution.pruned) == ((NLP,), (SPELLCHECK,))
        assert resolution.decisions[-1].reason is Reason.ESSAYS_LEFT_OUT

    def test_nlp_is_pruned_once_its_outcome_names_every_essay(self) -> None:
        assert resolved(NLP, REGISTERED, *checked(*ESSAYS), els(NLP, ESSAYS)).to_run == ()

    def test_an_outcome_for_three_of_five_registered_completes_nothing(self) -> None:
        decision = decided(NLP, EssaysRegistered(ESSAYS, 5, 10), *checked(*ESSAYS), els(NLP, ESSAYS))
        assert (decision.runs, decision.reason) == (True, Reason.ESSAYS_MISSING)
        assert decision.reason_text == "only 3 of 5 expected essays have been seen"

    def test_both_phases_run_for_an_essay_that_failed_the_first(
        self,
    ) -> None:
        failed = EssayPhaseEnded(SPELLCHECK, "e2", FAILED, 20)
        resolution = resolved(NLP, REGISTERED, *checked("e0", "e1"), failed, els(NLP, ("e0", "e1")))
        assert resolution.to_run == (SPELLCHECK, NLP)
        assert [one.reason_text for one in resolution.decisions] == [
            "1 of 3 essays failed in it",
            "2 of 3 essays have completed it, and 1 failed before it",
        ]

    def test_one_spellchecked_essay_of_a_registered_thirty_completes_nothing(self) -> None:
        thirty = tuple(f"essay-{number}" for number in range(30))
        registered = EssaysRegistered(thirty, 30, 10)
        assert not complete(SPELLCHECK, registered, *checked(thirty[0]))
        assert not complete(SPELLCHECK, registered, *checked(*thirty[:29]))
        assert complete(SPELLCHECK, registered, *checked(*thirty))


class TestAnEssaysOwnMark:
    def test_the_newer_mark_of_an_essay_counts_in_both_directions(self) -> None:
        failed = EssayPhaseEnded(SPELLCHECK, "e0", FAILED, 21)
        assert not complete(SPELLCHECK, *checked("e0"), failed)
        assert complete(SPELLCHECK, *checked("e0", at_us=22), failed)

    def test_a_newer_mark_of_an_essay_counts_before_an_outcome_that_names_it(self) -> None:
        failed = EssayPhaseEnded(SPELLCHECK, "e0", FAILED, 20)
        assert not complete(SPELLCHECK, failed, els(SPELLCHECK, ("e0",), at_us=19))
        assert complete(SPELLCHECK, failed, els(SPELLCHECK, ("e0",), at_us=21))

    def test_at_the_same_instant_failed_counts(self) -> None:
        assert not complete(SPELLCHECK, *checked("e0"), EssayPhaseEnded(SPELLCHECK, "e0", FAILED, 20))
        assert not complete(SPELLCHECK, els(SPELLCHECK, ("e0",), ("e0",)))

    def test_at_the_same_instant_an_essays_own_mark_counts_before_a_report(self) -> None:
        failed = EssayPhaseEnded(SPELLCHECK, "e0", FAILED, 20)
        assert not complete(SPELLCHECK, failed, PhaseReported(SPELLCHECK, COMPLETED, 20))
        assert complete(SPELLCHECK, *checked("e0"), PhaseReported(SPELLCHECK, FAILED, 20))
        assert not complete(SPELLCHECK, failed, els(SPELLCHECK, at_us=20))

    def test_an_essay_in_an_outcome_without_a_time_joins_at_the_outcome(self) -> None:
        assert complete(SPELLCHECK, els(SPELLCHECK, ("e0",), at_us=30), EssaysRegistered((), 1, 10))
        assert not complete(NLP, els(SPELLCHECK, ("e0",), at_us=30), PhaseReported(NLP, COMPLETED, 29))


class TestWhoSpeaksForTheWholeBatch:
    def test_a_report_speaks_for_every_essay_that_had_joined_by_then(self) -> None:
        assert complete(NLP, REGISTERED, PhaseReported(NLP, COMPLETED, 10))
        assert not complete(NLP, REGISTERED, PhaseReported(NLP, COMPLETED, 9))

    def test_an_essay_joined_when_it_was_known_first(self) -> None:
        reported = PhaseReported(NLP, COMPLETED, 15)
        assert complete(NLP, REGISTERED, *checked(*ESSAYS, at_us=20), reported)
        assert complete(NLP, *checked(*ESSAYS, at_us=20), reported, REGISTERED)
        assert not complete(NLP, *checked(*ESSAYS, at_us=20), reported)

    def test_a_report_does_not_speak_for_an_essay_that_joined_later(self) -> None:
        later = EssaysRegistered(("e3",), 4, 21)
        assert not complete(NLP, REGISTERED, PhaseReported(NLP, COMPLETED, 20), later)

    def test_a_report_also_speaks_for_expected_essays_that_nobody_has_named(self) -> None:
        decision = decided(SPELLCHECK, EssaysRegistered(ESSAYS, 5, 10), PhaseReported(SPELLCHECK, COMPLETED, 20))
        assert not decision.runs
        assert decision.reason_text == "all 3 essays seen so far have completed it; a report covers 2 more"
        assert complete(SPELLCHECK, EssaysRegistered(ESSAYS, 5, 10), PhaseReported(SPELLCHECK, COMPLETED, 10))

    def test_a_report_before_an_essay_does_not_cover_expected_essays(self) -> None:
        registered = EssaysRegistered(("e0",), 3, 10)
        reported = PhaseReported(SPELLCHECK, COMPLETED, 20)
        assert complete(SPELLCHECK, registered, reported)
        assert not complete(SPELLCHECK, registered, reported, *checked("e1", at_us=21))

    def test_a_nameless_success_of_els_speaks_for_every_essay_that_was_due(self) -> None:
        assert complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP))

    def test_a_nameless_success_does_not_speak_for_an_essay_that_joined_later(self) -> None:
        later = EssaysRegistered(("e3",), 4, 31)
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS, "e3", at_us=31), later, els(NLP))
        assert complete(NLP, REGISTERED, *checked(*ESSAYS, at_us=30), els(NLP))

    def test_a_success_without_a_list_needs_the_required_phases(self) -> None:
        failed = EssayPhaseEnded(SPELLCHECK, "e2", FAILED, 20)
        assert not complete(NLP, REGISTERED, *checked("e0", "e1"), els(NLP))
        assert not complete(NLP, REGISTERED, *checked("e0", "e1"), failed, els(NLP))

    def test_a_report_on_what_nlp_requires_makes_its_nameless_success_speak(self) -> None:
        assert complete(NLP, REGISTERED, PhaseReported(SPELLCHECK, COMPLETED, 20), els(NLP))

    def test_a_success_without_a_list_needs_only_direct_requirements(self) -> None:
        analysed = [EssayPhaseEnded(NLP, essay, COMPLETED, 20) for essay in ESSAYS]
        assert complete("ranking", REGISTERED, *analysed, els("ranking"))

    @pytest.mark.parametrize("status", ["completed_with_failures", "failed_critically", "cancelled"])
    def test_a_nameless_outcome_that_is_no_success_speaks_for_nobody(self, status: str) -> None:
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP, status=status))

    def test_a_cj_completion_never_speaks_for_the_batch(self) -> None:
        assert not complete(CJ, REGISTERED, *checked(*ESSAYS), cj(()))
        assert not complete(CJ, cj(()))

    def test_only_the_newest_outcome_of_a_phase_speaks(self) -> None:
        named = els(NLP, ("e0",), at_us=31)
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP), named)
        assert complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP, at_us=32), named)

    def test_at_the_same_instant_the_outcome_for_nobody_counts(self) -> None:
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP), els(NLP, ("e0",)))
        timed = [
            PhaseOutcome(NLP, SUCCESS, completed=named, failed=(), speaks_for_all=not named, at_us=30)
            for named in ((), ("e0",))
        ]
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), *timed)
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), *timed[::-1])

    def test_a_report_counts_before_an_outcome_of_the_same_instant(self) -> None:
        assert not complete(NLP, REGISTERED, *checked(*ESSAYS), els(NLP), PhaseReported(NLP, FAILED, 30))

    def test_the_newest_report_replaces_what_was_known(self) -> None:
        failed = PhaseReported(SPELLCHECK, FAILED, 30)
        assert not complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), failed)
        assert complete(SPELLCHECK, REGISTERED, failed, PhaseReported(SPELLCHECK, COMPLETED, 31))
        assert not complete(SPELLCHECK, REGISTERED, failed, PhaseReported(SPELLCHECK, COMPLETED, 30))

    def test_a_report_completes_a_phase_of_which_no_essay_is_known(self) -> None:
        decision = decided(SPELLCHECK, PhaseReported(SPELLCHECK, COMPLETED, 20))
        assert (decision.runs, decision.reason_text) == (
            False,
            "it was reported complete, and no essay of the batch is known",
        )
        assert not complete(SPELLCHECK, PhaseReported(SPELLCHECK, COMPLETED, 20), PhaseReported(SPELLCHECK, FAILED, 21))

    def test_without_essays_the_newer_of_report_and_success_counts(self) -> None:
        assert complete(NLP, els(NLP))
        assert complete(NLP, els(NLP), PhaseReported(NLP, FAILED, 29))
        assert not complete(NLP, els(NLP), PhaseReported(NLP, FAILED, 30))


class TestSettled:
    def test_a_failed_essay_counts_as_settled(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), cj(("e0", "e1"), ("e2",)))
        assert decided(CJ, *facts).reason is Reason.ESSAYS_FAILED
        decision = settled(CJ, *facts)
        assert (decision.runs, decision.reason) == (False, Reason.SETTLED)
        assert (decision.completed, decision.failed, decision.left_out) == (2, 1, 0)
        assert decision.reason_text == "2 of 3 essays completed it, 1 failed in it"

    def test_an_essay_that_failed_in_a_required_phase_counts_as_settled(self) -> None:
        facts = (REGISTERED, *checked("e0", "e1"), EssayPhaseEnded(SPELLCHECK, "e2", FAILED, 20))
        analysed = [EssayPhaseEnded(NLP, essay, COMPLETED, 30) for essay in ("e0", "e1")]
        decision = settled(NLP, *facts, *analysed)
        assert (decision.runs, decision.failed) == (False, 1)
        assert decision.reason_text == "2 of 3 essays completed it, 1 failed before it"

    def test_an_essay_that_failed_in_an_indirect_requirement_is_settled(self) -> None:
        ranked = [EssayPhaseEnded("ranking", essay, COMPLETED, 30) for essay in ("e0", "e1")]
        assert not settled("ranking", REGISTERED, *ranked, EssayPhaseEnded(SPELLCHECK, "e2", FAILED, 20)).runs
        assert settled("ranking", REGISTERED, *ranked, EssayPhaseEnded(CJ, "e2", FAILED, 20)).runs

    def test_an_essay_that_the_newest_outcome_left_out_counts_as_settled(self) -> None:
        decision = settled(CJ, REGISTERED, *checked(*ESSAYS), cj(("e0", "e1")))
        assert (decision.runs, decision.left_out) == (False, 1)
        assert decision.reason_text == "2 of 3 essays completed it, 1 was left out of its outcome"

    def test_an_essay_that_joined_with_the_outcome_was_not_left_out(self) -> None:
        def joined(at_us: int) -> bool:
            registered = (EssaysRegistered(("e0", "e1"), 3, 10), EssaysRegistered(("e2",), 3, at_us))
            return not settled(CJ, *registered, cj(("e0", "e1"), at_us=30)).runs

        assert joined(29)
        assert not joined(30)
        assert not joined(31)

    def test_the_newest_of_several_outcomes_says_who_was_left_out(self) -> None:
        registered = (EssaysRegistered(("e0", "e1"), 3, 10), EssaysRegistered(("e2",), 3, 25))
        first, second = cj(("e0", "e1"), at_us=20), cj(("e0", "e1"), at_us=30)
        assert settled(CJ, *registered, first).runs
        assert not settled(CJ, *registered, first, second).runs
        assert not settled(CJ, *registered, second, first).runs

    def test_an_essay_of_which_nothing_is_known_is_not_settled(self) -> None:
        done = EssayPhaseEnded(NLP, "e0", COMPLETED, 30)
        decision = settled(NLP, REGISTERED, done, EssayPhaseEnded(NLP, "e1", FAILED, 30))
        assert (decision.runs, decision.reason) == (True, Reason.ESSAYS_OUTSTANDING)

    @pytest.mark.parametrize(
        "outcome",
        [cj((), ESSAYS), cj((), ("e0",)), cj(())],
        ids=["all failed", "one failed, two left out", "all left out"],
    )
    def test_a_phase_that_no_essay_completed_is_never_settled(self, outcome: PhaseOutcome) -> None:
        assert settled(CJ, REGISTERED, *checked(*ESSAYS), outcome).runs

    def test_a_phase_of_which_all_essays_failed_before_is_never_settled(self) -> None:
        failed = [EssayPhaseEnded(SPELLCHECK, essay, FAILED, 20) for essay in ESSAYS]
        decision = settled(NLP, REGISTERED, *failed, els(NLP))
        assert (decision.runs, decision.reason_text) == (
            True,
            "0 of 3 essays have completed it, and 3 failed before it",
        )

    def test_settled_essays_do_not_stand_in_for_expected_ones(self) -> None:
        facts = (EssaysRegistered(ESSAYS, 5, 10), cj(("e0", "e1"), ("e2",)))
        decision = settled(CJ, *facts)
        assert (decision.runs, decision.reason) == (True, Reason.ESSAYS_MISSING)

    def test_a_settled_phase_of_an_unregistered_batch_says_so(self) -> None:
        decision = settled(CJ, cj(("e0", "e1"), ("e2",)))
        assert decision.reason_text == (
            "2 of 3 essays seen so far completed it, 1 failed in it; the batch is not registered"
        )


class TestRegistration:
    def test_seen_essays_of_an_unregistered_batch_count_and_are_explained(self) -> None:
        resolution = resolved(SPELLCHECK, *checked("e0"))
        assert (resolution.to_run, resolution.registered) == ((), False)
        assert resolution.decisions[0].reason_text == (
            "the only essay seen so far has completed it; the batch is not registered"
        )
        assert decided(SPELLCHECK, *checked("e0", "e1")).reason_text == (
            "all 2 essays seen so far have completed it; the batch is not registered"
        )

    def test_where_registration_is_required_counting_seen_essays_is_not_enough(self) -> None:
        decision = decided(SPELLCHECK, *checked("e0"), require_registration=True)
        assert (decision.runs, decision.reason) == (True, Reason.NOT_REGISTERED)
        assert decision.reason_text == "the batch is not registered, and may have more than 1 essay"

    def test_where_registration_is_required_a_registered_batch_completes(self) -> None:
        assert complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), require_registration=True)
        assert not complete(SPELLCHECK, REGISTERED, *checked("e0"), require_registration=True)

    def test_a_report_for_all_known_essays_completes_an_unregistered_batch(self) -> None:
        report = PhaseReported(SPELLCHECK, COMPLETED, 30)
        assert complete(SPELLCHECK, *checked("e0"), report, require_registration=True)
        assert not complete(SPELLCHECK, *checked("e0", at_us=31), report, require_registration=True)

    def test_a_report_of_success_older_than_one_of_failure_covers_nothing(self) -> None:
        reports = (PhaseReported(SPELLCHECK, COMPLETED, 30), PhaseReported(SPELLCHECK, FAILED, 31))
        again = checked("e0", at_us=32)
        facts: tuple[Fact, ...] = (*checked("e0"), *reports, *again)
        assert complete(SPELLCHECK, *facts)
        assert not complete(SPELLCHECK, *facts, require_registration=True)

    def test_a_nameless_success_does_not_stand_in_for_a_registration(self) -> None:
        assert complete(NLP, *checked("e0"), els(NLP))
        assert not complete(NLP, *checked("e0"), els(NLP), require_registration=True)

    def test_a_batch_of_which_no_essay_is_known_needs_no_registration(self) -> None:
        assert complete(NLP, els(NLP), require_registration=True)
        assert complete(NLP, PhaseReported(NLP, COMPLETED, 20), require_registration=True)

    def test_the_newest_registration_says_how_many_essays_are_expected(self) -> None:
        first = EssaysRegistered(ESSAYS, 3, 10)
        assert not complete(SPELLCHECK, first, EssaysRegistered((), 4, 11), *checked(*ESSAYS))
        assert complete(SPELLCHECK, first, EssaysRegistered((), 4, 9), *checked(*ESSAYS))
        assert not complete(SPELLCHECK, first, EssaysRegistered((), 4, 10), *checked(*ESSAYS))

    def test_more_essays_than_expected_do_not_keep_a_phase_from_being_complete(self) -> None:
        assert complete(SPELLCHECK, EssaysRegistered(ESSAYS, 2, 10), *checked(*ESSAYS))

    def test_a_registration_that_comes_late_makes_a_phase_incomplete_again(self) -> None:
        assert complete(SPELLCHECK, *checked("e0"))
        assert not complete(SPELLCHECK, *checked("e0"), REGISTERED)


class TestRepeatsWithoutATime:
    def test_a_late_copy_of_an_outcome_does_not_undo_a_report_of_failure(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), els(NLP, ESSAYS, at_us=30), PhaseReported(NLP, FAILED, 40))
        assert not complete(NLP, *facts)
        assert not complete(NLP, *facts, els(NLP, ESSAYS, at_us=50))
        assert not complete(NLP, els(NLP, ESSAYS, at_us=50), *facts)

    def test_a_late_copy_of_a_success_does_not_undo_a_failure_report(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), els(NLP, at_us=30), PhaseReported(NLP, FAILED, 40))
        assert not complete(NLP, *facts, els(NLP, at_us=50))

    def test_a_late_copy_is_not_the_newest_outcome(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), els(NLP, at_us=40), els(NLP, ("e0",), at_us=30))
        assert complete(NLP, *facts)
        assert complete(NLP, *facts, els(NLP, ("e0",), at_us=50))

    def test_an_outcome_that_differs_is_no_copy(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), els(NLP, ("e0", "e1"), ("e2",), at_us=30))
        assert complete(NLP, *facts, els(NLP, ESSAYS, at_us=50))


class TestInvalidation:
    def test_what_is_older_than_an_invalidation_does_not_count(self) -> None:
        facts = (REGISTERED, *checked(*ESSAYS))
        assert not complete(SPELLCHECK, *facts, PhaseInvalidated(SPELLCHECK, None, 21))
        assert complete(SPELLCHECK, *facts, PhaseInvalidated(SPELLCHECK, None, 20))
        assert complete(SPELLCHECK, *facts, PhaseInvalidated(NLP, None, 21))

    def test_the_newest_of_several_invalidations_counts(self) -> None:
        older, newer = PhaseInvalidated(SPELLCHECK, None, 15), PhaseInvalidated(SPELLCHECK, None, 21)
        assert not complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), older, newer)
        assert not complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), newer, older)
        of_one = PhaseInvalidated(SPELLCHECK, "e1", 15)
        assert not complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), newer, of_one)

    def test_an_essay_counts_again_once_it_is_completed_anew(self) -> None:
        invalidated = PhaseInvalidated(SPELLCHECK, None, 21)
        assert complete(SPELLCHECK, REGISTERED, *checked(*ESSAYS), invalidated, *checked(*ESSAYS, at_us=22))

    def test_an_invalidation_for_one_essay_leaves_the_others_alone(self) -> None:
        facts: tuple[Fact, ...] = (REGISTERED, *checked(*ESSAYS), PhaseInvalidated(SPELLCHECK, "e1", 21))
        assert decided(SPELLCHECK, *facts).reason_text == "2 of 3 essays have completed it"
        assert complete(SPELLCHECK, *facts, *checked("e1", at_us=22))

    @pytest.mark.parametrize("essay_id", [None, "e1"])
    def test_a_report_that_is_invalidated_does_not_speak(self, essay_id: str | None) -> None:
        facts = (REGISTERED, PhaseReported(NLP, COMPLETED, 20))
        assert not complete(NLP, *facts, PhaseInvalidated(NLP, essay_id, 21))
        assert complete(NLP, *facts, PhaseInvalidated(NLP, essay_id, 20))

    @pytest.mark.parametrize("essay_id", [None, "e1"])
    def test_a_nameless_success_that_is_invalidated_does_not_speak(self, essay_id: str | None) -> None:
        facts = (REGISTERED, *checked(*ESSAYS), els(NLP, at_us=30))
        assert not complete(NLP, *facts, PhaseInvalidated(NLP, essay_id, 31))
        assert complete(NLP, *facts, PhaseInvalidated(NLP, essay_id, 30))

    @pytest.mark.parametrize("essay_id", [None, "e2"])
    def test_an_outcome_that_is_invalidated_leaves_nobody_out(self, essay_id: str | None) -> None:
        facts: tuple[Fact, ...] = (REGISTERED, cj(("e0",)), EssayPhaseEnded(CJ, "e0", COMPLETED, 40))
        facts = (*facts, EssayPhaseEnded(CJ, "e1", COMPLETED, 40))
        assert not settled(CJ, *facts, PhaseInvalidated(CJ, essay_id, 30)).runs
        assert settled(CJ, *facts, PhaseInvalidated(CJ, essay_id, 31)).runs

    def test_an_invalidated_report_does_not_speak_for_expected_essays(self) -> None:
        facts = (EssaysRegistered(ESSAYS, 5, 10), PhaseReported(SPELLCHECK, COMPLETED, 20))
        again = checked(*ESSAYS, at_us=30)
        assert complete(SPELLCHECK, *facts, *again)
        assert not complete(SPELLCHECK, *facts, *again, PhaseInvalidated(SPELLCHECK, None, 25))

    def test_with_no_essay_known_an_invalidated_report_says_nothing(self) -> None:
        assert not complete(NLP, PhaseReported(NLP, COMPLETED, 20), PhaseInvalidated(NLP, None, 21))
        assert not complete(NLP, els(NLP, at_us=20), PhaseInvalidated(NLP, None, 21))


@pytest.mark.parametrize(
    ("progress", "known", "expected", "sentence"),
    [
        (None, 0, None, "nothing is known of any essay in it"),
        (None, 1, 1, "0 of 1 essay has completed it"),
        (None, 3, 3, "0 of 3 essays have completed it"),
        (PhaseProgress(False, 1, 0), 3, 3, "1 of 3 essays has completed it"),
        (PhaseProgress(False, 0, 1), 1, 1, "1 of 1 essay failed in it"),
        (PhaseProgress(False, 3, 0), 3, None, "the batch is not registered, and may have more than 3 essays"),
        (PhaseProgress(False, 1, 0), 1, 30, "only 1 of 30 expected essays has been seen"),
        (PhaseProgress(False, 2, 0), 2, 30, "only 2 of 30 expected essays have been seen"),
        (None, 0, 1, "no essay has been seen, and 1 is expected"),
        (None, 0, 2, "no essay has been seen, and 2 are expected"),
        (PhaseProgress(True, 1, 0), 1, 1, "the only essay has completed it"),
        (PhaseProgress(True, 3, 0), 3, 3, "all 3 essays have completed it"),
        (PhaseProgress(True, 3, 0, covered=True), 3, None, "all 3 essays have completed it"),
        (
            PhaseProgress(False, 1, 0, left_out=2, outcome_at_us=0),
            3,
            3,
            "1 of 3 essays has completed it, and 2 are not in the outcome of 1970-01-01T00:00:00.000000Z",
        ),
        (
            PhaseProgress(True, 1, 2, failed_before=3, left_out=4),
            10,
            10,
            "1 of 10 essays completed it, 2 failed in it, 3 failed before it, 4 were left out of its outcome",
        ),
    ],
)
def test_each_reason_is_a_correct_sentence(
    progress: PhaseProgress | None, known: int, expected: int | None, sentence: str
) -> None:
    summary = BatchSummary(1, known, expected, {SPELLCHECK: progress} if progress else {})
    [decision] = resolve(definitions(), SPELLCHECK, summary).decisions
    assert decision.reason_text == sentence
