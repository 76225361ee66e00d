"""Decides again from nothing but the data of an explanation, without any code of the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_SETTLED = {"completed", "failed", "failed_before", "not_in_outcome"}


def pipeline_of(answer: Mapping[str, Any]) -> list[str]:
    """The phases to run, as the explanation in an answer implies them.

    :param answer: an answer with an `explanation`, as JSON.
    """
    run: list[str] = []
    for phase in answer["explanation"]["phases"]:
        if phase["decision"] == "leave_out":
            continue
        complete = {"completed": True, "failed": False, None: is_complete(answer, phase)}[phase["assumed"]]
        again = phase["rerun_with_dependencies"] and any(name in run for name in phase["requires"])
        changed = phase["assumed"] is None and phase["older_definition"] is not None
        if not complete or phase["forced"] or again or changed:
            run.append(phase["phase"])
    return run


def is_complete(answer: Mapping[str, Any], phase: Mapping[str, Any]) -> bool:
    """True if the phase is complete, by the counts and the facts in its explanation."""
    known, expected = answer["essays_known"], answer["essays_expected"]
    report, outcome = phase["report"], phase["outcome"]
    if not known:
        if outcome and outcome["speaks_for_all"] and (not report or outcome["at"] > report["at"]):
            return True
        return bool(report) and report["outcome"] == "completed"
    done = phase["completed"]
    if phase["complete_when"] == "every_essay_settled" and done:
        done += phase["failed"] + phase["failed_before"] + phase["left_out"]
    if done < known:
        return False
    if phase["covered_by_report"]:
        return True
    if expected is None:
        return not answer["explanation"]["registration_required"]
    return bool(known >= expected)


def check_essays(answer: Mapping[str, Any]) -> None:
    """Check that the counts of a full explanation, on one page, are those of its essays."""
    for phase in answer["explanation"]["phases"]:
        assert len(phase["essays"]) == answer["essays_known"]
        standings = Counter(essay["standing"] for essay in phase["essays"])
        for count, standing in (
            ("completed", "completed"),
            ("failed", "failed"),
            ("failed_before", "failed_before"),
            ("left_out", "not_in_outcome"),
        ):
            assert phase[count] == standings[standing], (phase["phase"], count)
        for essay in phase["essays"]:
            assert (essay["mark"] is not None) == (essay["standing"] in ("completed", "failed"))


def check_causes(answer: Mapping[str, Any]) -> None:
    """Check that each phase has a cause, and that the causes fit the decision, the counts, and the sentence."""
    for phase in answer["explanation"]["phases"]:
        causes = {cause["cause"]: cause for cause in phase["causes"]}
        assert causes, phase["phase"]
        assert len(causes) == len(phase["causes"]) or set(causes) & {"completed_by_outcome"}
        by = [cause for cause in phase["causes"] if cause["cause"].startswith("completed_by_")]
        assert bool(by) <= phase["complete"]
        if by and answer["essays_known"]:
            assert sum(cause["count"] for cause in by) == phase["completed"]
        assert (phase["complete_since"] is not None) == bool(by)
        if "essays_failed" in causes:
            assert causes["essays_failed"]["count"] == phase["failed"]
        if "essays_not_in_outcome" in causes:
            assert causes["essays_not_in_outcome"]["at"] == phase["outcome"]["at"]
        if "settled" in causes:
            assert phase["complete"]
            assert phase["completed"] < answer["essays_known"]
        older = phase["older_definition"]
        if older is not None:
            assert phase["rerun_when_changed"]
            assert phase["complete"]
            assert older["definition"] != phase["definition"]
            assert older["completed_since"] < max(answer["essays_known"], 1)
        if phase["assumed"] is None and phase["decision"] != "leave_out":
            assert ("definition_changed" in causes) == (older is not None) == (phase["reason"] == "definition_changed")
        if "definition_changed" in causes:
            cause = causes["definition_changed"]
            assert (cause["definition_before"], cause["definition"]) == (older["definition"], phase["definition"])
            assert (cause["at"], cause["count"]) == (older["at"], older["completed_since"])
        if "definition_unknown" in causes:
            assert phase["rerun_when_changed"]
            assert phase["complete"]
            assert older is None
        assert ("forced" in causes) <= phase["forced"]
        assert bool({"downstream_of_forced", "dependency_runs_again"} & set(causes)) == bool(phase["runs_again_after"])
        for cause in phase["causes"]:
            assert len(cause.get("essays", ())) <= min(20, cause.get("count", 20))
        assert phase["sentence"].startswith(phase["phase"])
        word = {"run": " runs: ", "prune": " is pruned: ", "leave_out": " is left out: "}[phase["decision"]]
        assert word in phase["sentence"]
