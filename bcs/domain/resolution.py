"""Resolution: which phases of a pipeline does a batch still need? A pure function of definitions and summary."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bcs.domain.errors import PromptRequired
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.verdicts import BatchSummary


class Reason(StrEnum):
    """Why a phase runs or is pruned."""

    ALREADY_COMPLETED = "already_completed"
    NOTHING_KNOWN = "nothing_known"
    ESSAYS_FAILED = "essays_failed"
    ESSAYS_OUTSTANDING = "essays_outstanding"
    ESSAYS_MISSING = "essays_missing"
    DEPENDENCY_RUNS_AGAIN = "dependency_runs_again"


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one phase of the pipeline, and why.

    :param because: the reason as part of a sentence.
    """

    phase: str
    runs: bool
    reason: Reason
    because: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """The answer to "what is still to run?"; decisions are in the order of the pipeline."""

    pipeline: str
    decisions: tuple[Decision, ...]

    @property
    def to_run(self) -> tuple[str, ...]:
        """The phases still to run, in an order in which they can run."""
        return tuple(decision.phase for decision in self.decisions if decision.runs)

    @property
    def pruned(self) -> tuple[str, ...]:
        """The phases that need not run."""
        return tuple(decision.phase for decision in self.decisions if not decision.runs)

    @property
    def explanation(self) -> str:
        """The whole answer in a sentence or two, for a person."""
        to_run, pruned = self.to_run, self.pruned
        if not to_run:
            subject, verb = ("phase", "is") if len(self.decisions) == 1 else (f"{len(self.decisions)} phases", "are")
            return (
                f"Nothing is left to run: the {subject} of pipeline '{self.pipeline}' "
                f"({', '.join(pruned)}) {verb} already complete."
            )
        reasons = "; ".join(
            f"{decision.phase}, because {decision.because}" for decision in self.decisions if decision.runs
        )
        count = f"{len(to_run)} of {len(self.decisions)} phases of pipeline '{self.pipeline}' still to run"
        skipped = f" Pruned as already complete: {', '.join(pruned)}." if pruned else ""
        return f"{count}: {reasons}.{skipped}"


def admit(definitions: PipelineDefinitions, requested: str, *, prompt_attached: bool | None) -> None:
    """Refuse what can't be resolved, whatever the batch's state.

    :param requested: a pipeline's or a phase's name.
    :param prompt_attached: whether the batch has an essay prompt; None when the caller did not say.
    :raises UnknownPipeline: nothing is defined under that name.
    :raises PromptRequired: a phase needs a prompt, and the caller said that there is none.
    """
    gated = tuple(phase.name for phase in definitions.plan(requested) if phase.needs_prompt)
    if prompt_attached is False and gated:
        raise PromptRequired(gated)


def resolve(definitions: PipelineDefinitions, requested: str, summary: BatchSummary) -> Resolution:
    """Decide for each phase of a pipeline whether it has to run.

    :param requested: a pipeline's or a phase's name.
    :raises UnknownPipeline: nothing is defined under that name.
    """
    running: set[str] = set()
    decisions: list[Decision] = []
    for phase in definitions.plan(requested):
        again = [name for name in phase.requires if name in running] if phase.rerun_with_dependencies else []
        if not summary.complete(phase.name):
            decision = Decision(phase.name, True, *_why_incomplete(summary, phase.name))
        elif again:
            because = f"{' and '.join(again)} must run again first"
            decision = Decision(phase.name, True, Reason.DEPENDENCY_RUNS_AGAIN, because)
        else:
            decision = Decision(phase.name, False, Reason.ALREADY_COMPLETED, "it is already complete")
        if decision.runs:
            running.add(phase.name)
        decisions.append(decision)
    return Resolution(requested, tuple(decisions))


def _why_incomplete(summary: BatchSummary, phase: str) -> tuple[Reason, str]:
    verdict = summary.verdicts.get(phase)
    total = max(summary.known, summary.expected or 0)
    if total == 0:
        return Reason.NOTHING_KNOWN, "nothing is known of any essay in it"
    if verdict is None:
        return Reason.ESSAYS_OUTSTANDING, f"0 of {total} essays have completed it"
    if verdict.failed:
        return Reason.ESSAYS_FAILED, f"{verdict.failed} of {total} essays failed in it"
    if verdict.completed < summary.known:
        return Reason.ESSAYS_OUTSTANDING, f"{verdict.completed} of {total} essays have completed it"
    return Reason.ESSAYS_MISSING, f"only {summary.known} of {total} expected essays have been seen"
