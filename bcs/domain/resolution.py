"""Resolution: which phases of a pipeline does a batch still need? A pure function of definitions and summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.resolve_options import PLAIN, ResolveOptions, Selection, select
from bcs.domain.times import format_timestamp
from bcs.errors import NeededPhase, NeededPhasesLeftOut, PromptRequired


class Reason(StrEnum):
    """Why a phase runs or is pruned."""

    ALREADY_COMPLETED = "already_completed"
    SETTLED = "settled"
    NOTHING_KNOWN = "nothing_known"
    ESSAYS_FAILED = "essays_failed"
    ESSAYS_LEFT_OUT = "essays_left_out"
    ESSAYS_OUTSTANDING = "essays_outstanding"
    ESSAYS_MISSING = "essays_missing"
    NOT_REGISTERED = "not_registered"
    DEFINITION_CHANGED = "definition_changed"
    DEPENDENCY_RUNS_AGAIN = "dependency_runs_again"
    FORCED = "forced"
    DOWNSTREAM_OF_FORCED = "downstream_of_forced"
    ASSUMED_COMPLETED = "assumed_completed"
    ASSUMED_FAILED = "assumed_failed"
    NOT_SELECTED = "not_selected"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedDefinition:
    """The definition of a phase has changed since the phase completed.

    :param before: the hash of the definition under which the newest of the other facts were recorded.
    :param after: the hash of the definition in use.
    :param at_us: the time of the newest fact under another definition, in microseconds since 1970 UTC.
    :param completed_since: essays that completed the phase later.
    """

    before: str
    after: str
    at_us: int
    completed_since: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one phase of the pipeline, and its reason.

    :param reason_text: the reason as part of a sentence.
    :param complete_when: the phase's policy.
    :param completed: how many essays completed the phase.
    :param failed: how many essays failed in the phase, or in a phase that it requires.
    :param left_out: how many essays the phase's newest outcome does not list.
    :param complete: whether the phase counts as complete, also where it runs again.
    :param forced: the request forces the phase to run.
    :param selected: False if the request leaves the phase out: then it neither runs nor is pruned.
    :param run_again_after: the required phases because of which a complete phase runs again.
    :param changed: set if a complete phase runs again because its definition has changed.
    """

    phase: str
    runs: bool
    _: KW_ONLY
    reason: Reason
    reason_text: str
    complete_when: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED
    completed: int = 0
    failed: int = 0
    left_out: int = 0
    complete: bool = False
    forced: bool = False
    selected: bool = True
    run_again_after: tuple[str, ...] = ()
    changed: ChangedDefinition | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The answer to "which phases are still to run?"; the decisions are in the order of the pipeline.

    :param registered: True if the batch was registered; else only the essays seen so far can be counted.
    :param known: how many essays are known.
    :param expected: how many essays the batch was registered with; None where it was not registered.
    :param definitions: names the definitions that decided.
    """

    pipeline: str
    decisions: tuple[Decision, ...]
    registered: bool = True
    known: int = 0
    expected: int | None = None
    _: KW_ONLY
    definitions: DefinitionsVersion

    @property
    def to_run(self) -> tuple[str, ...]:
        """The phases still to run, in an order in which they can run."""
        return tuple(decision.phase for decision in self.decisions if decision.runs)

    @property
    def pruned(self) -> tuple[str, ...]:
        """The complete phases, which need not run."""
        return tuple(decision.phase for decision in self.decisions if decision.selected and not decision.runs)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The phases that the request leaves out."""
        return tuple(decision.phase for decision in self.decisions if not decision.selected)

    @property
    def explanation(self) -> str:
        """The whole answer in a sentence or two, for a person."""
        to_run, left_out = self.to_run, ", ".join(self.left_out)
        pruned = [one for one in self.decisions if one.selected and not one.runs]
        skipped = "; ".join(f"{one.phase}, because {one.reason_text}" for one in pruned)
        others = f" Left out, as requested: {left_out}." if left_out else ""
        if not to_run:
            return (
                f"Nothing is left to run of pipeline '{self.pipeline}'{f': pruned are {skipped}' if skipped else ''}."
                + others
            )
        reasons = "; ".join(f"{one.phase}, because {one.reason_text}" for one in self.decisions if one.runs)
        count = f"{len(to_run)} of {len(self.decisions)} phases of pipeline '{self.pipeline}' still to run"
        return f"{count}: {reasons}.{f' Pruned: {skipped}.' if skipped else ''}{others}"


def validate_request(
    definitions: PipelineDefinitions,
    requested: str,
    *,
    prompt_attached: bool | None,
    options: ResolveOptions = PLAIN,
) -> None:
    """Refuse a request that can't be resolved, whatever the batch's state.

    :param requested: a pipeline's or a phase's name.
    :param prompt_attached: whether the batch has an essay prompt; None when the request does not include it.
    :raises UnknownPipeline: nothing is defined under that name.
    :raises UnknownPhases: an option names a phase that it can't name.
    :raises PromptRequired: a phase needs a prompt, and the request says that there is none.
    """
    gated = tuple(phase.name for phase in definitions.plan(requested) if phase.needs_prompt)
    if options is not PLAIN:
        selected = select(definitions, requested, options).selected
        gated = tuple(name for name in gated if name in selected)
    if prompt_attached is False and gated:
        raise PromptRequired(gated)


def resolve(
    definitions: PipelineDefinitions, requested: str, summary: BatchSummary, options: ResolveOptions = PLAIN
) -> Resolution:
    """Decide for each phase of a pipeline whether it has to run.

    :param requested: a pipeline's or a phase's name.
    :raises UnknownPipeline: nothing is defined under that name.
    :raises UnknownPhases: an option names a phase that it can't name.
    :raises NeededPhasesLeftOut: the options leave out phases that are not complete and that others need.
    """
    selection = select(definitions, requested, options)
    decisions: dict[str, Decision] = {}
    for phase in selection.plan:
        decisions[phase.name] = _decide(phase, summary, selection, options, decisions)
    if len(selection.selected) < len(selection.plan):
        _check_left_out(selection, decisions, summary, options)
    return Resolution(
        requested,
        tuple(decisions.values()),
        summary.registered,
        summary.known,
        summary.expected,
        definitions=definitions.identity,
    )


def _decide(
    phase: Phase,
    summary: BatchSummary,
    selection: Selection,
    options: ResolveOptions,
    decided: Mapping[str, Decision],
) -> Decision:
    """The decision about one phase.

    :param decided: the decisions about the phases before this one.
    """
    again = [name for name in phase.requires if decided[name].runs] if phase.rerun_with_dependencies else []
    progress = summary.progress.get(phase.name, _NO_PROGRESS)
    if phase.name in options.assume_completed:
        progress = PhaseProgress(True, summary.known, 0)
    elif phase.name in options.assume_failed:
        progress = PhaseProgress(False, 0, summary.known)
    forced, selected = phase.name in selection.forced, phase.name in selection.selected
    run_again_after: tuple[str, ...] = ()
    changed: ChangedDefinition | None = None
    if not selected:
        reason, reason_text = Reason.NOT_SELECTED, "the request leaves it out"
    elif not progress.complete:
        reason, reason_text = _why_incomplete(phase, summary, progress, options)
    elif progress.older is not None:
        changed = ChangedDefinition(
            before=progress.older.definition,
            after=phase.definition,
            at_us=progress.older.at_us,
            completed_since=progress.older.completed_since,
        )
        reason, reason_text = Reason.DEFINITION_CHANGED, _why_changed(summary, changed)
    elif forced:
        reason, reason_text = Reason.FORCED, "the request forces it to run, although it is complete"
    elif again:
        run_again_after = tuple(again)
        only_forced = all(decided[name].reason in _BECAUSE_OF_FORCE for name in again)
        reason = Reason.DOWNSTREAM_OF_FORCED if only_forced else Reason.DEPENDENCY_RUNS_AGAIN
        by_force = ", because of what the request forces" if only_forced else ""
        reason_text = f"{' and '.join(again)} must run again first{by_force}"
    elif phase.name in options.assume_completed:
        reason, reason_text = Reason.ASSUMED_COMPLETED, "it is assumed to be complete"
    else:
        reason, reason_text = _why_complete(summary, progress)
    return Decision(
        phase.name,
        reason not in _NOT_RUNNING,
        reason=reason,
        reason_text=reason_text,
        complete_when=phase.complete_when,
        completed=progress.completed,
        failed=progress.failed + progress.failed_before,
        left_out=progress.left_out,
        complete=progress.complete,
        forced=forced,
        selected=selected,
        run_again_after=run_again_after,
        changed=changed,
    )


def _check_left_out(
    selection: Selection, decisions: Mapping[str, Decision], summary: BatchSummary, options: ResolveOptions
) -> None:
    needed: list[NeededPhase] = []
    for phase in selection.plan:
        if decisions[phase.name].selected or decisions[phase.name].complete:
            continue
        by = tuple(one.name for one in selection.plan if phase.name in one.requires and decisions[one.name].runs)
        if by:
            progress = summary.progress.get(phase.name, _NO_PROGRESS)
            _, reason_text = _why_incomplete(phase, summary, progress, options)
            needed.append(NeededPhase(phase.name, by, reason_text))
    if needed:
        raise NeededPhasesLeftOut(tuple(needed))


_NO_PROGRESS = PhaseProgress(False, 0, 0)
_NOT_RUNNING = frozenset({Reason.ALREADY_COMPLETED, Reason.SETTLED, Reason.ASSUMED_COMPLETED, Reason.NOT_SELECTED})
_BECAUSE_OF_FORCE = frozenset({Reason.FORCED, Reason.DOWNSTREAM_OF_FORCED})


def _why_incomplete(
    phase: Phase, summary: BatchSummary, progress: PhaseProgress, options: ResolveOptions
) -> tuple[Reason, str]:
    if phase.name in options.assume_failed:
        return Reason.ASSUMED_FAILED, "it is assumed to have failed"
    total = max(summary.known, summary.expected or 0)
    if total == 0:
        return Reason.NOTHING_KNOWN, "nothing is known of any essay in it"
    done = progress.completed
    if phase.complete_when is CompleteWhen.EVERY_ESSAY_SETTLED and done:
        # Under this policy failed and left-out essays do not block the phase, so they are not the reason.
        done += progress.failed + progress.failed_before + progress.left_out
    elif progress.failed:
        return Reason.ESSAYS_FAILED, f"{progress.failed} of {_essays(total)} failed in it"
    elif progress.left_out and progress.outcome_at_us is not None:
        when = format_timestamp(progress.outcome_at_us)
        others = f", and {progress.left_out} {_are(progress.left_out)} not in the outcome of {when}"
        return Reason.ESSAYS_LEFT_OUT, _have_completed(progress.completed, total) + others
    if done < summary.known:
        before = f", and {progress.failed_before} failed before it" if progress.failed_before else ""
        return Reason.ESSAYS_OUTSTANDING, _have_completed(progress.completed, total) + before
    if not summary.registered:
        return Reason.NOT_REGISTERED, f"the batch is not registered, and may have more than {_essays(total)}"
    if summary.known == 0:
        return Reason.ESSAYS_MISSING, f"no essay has been seen, and {total} {_are(total)} expected"
    return Reason.ESSAYS_MISSING, f"only {summary.known} of {total} expected essays {_have(summary.known)} been seen"


def _why_complete(summary: BatchSummary, progress: PhaseProgress) -> tuple[Reason, str]:
    known, missing = summary.known, max(0, (summary.expected or 0) - summary.known)
    if known == 0:
        return Reason.ALREADY_COMPLETED, "it was reported complete, and no essay of the batch is known"
    counted = not summary.registered and not progress.covered
    seen = " seen so far" if counted or missing else ""
    without_report = "; the batch is not registered" if counted else ""
    addition = f"; a report covers {missing} more" if missing else without_report
    if progress.completed == known:
        everyone = f"the only essay{seen} has" if known == 1 else f"all {known} essays{seen} have"
        return Reason.ALREADY_COMPLETED, f"{everyone} completed it{addition}"
    others = [
        (progress.failed, "failed in it"),
        (progress.failed_before, "failed before it"),
        (progress.left_out, f"{'was' if progress.left_out == 1 else 'were'} left out of its outcome"),
    ]
    counts = ", ".join(f"{count} {text}" for count, text in others if count)
    return Reason.SETTLED, f"{progress.completed} of {_essays(known)}{seen} completed it, {counts}{addition}"


def _why_changed(summary: BatchSummary, changed: ChangedDefinition) -> str:
    since = f", and {_have_completed(changed.completed_since, summary.known)} since" if changed.completed_since else ""
    when = format_timestamp(changed.at_us)
    return f"its definition changed since it completed on {when} ({changed.before} → {changed.after}){since}"


def _essays(count: int) -> str:
    return f"{count} essay" if count == 1 else f"{count} essays"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _have_completed(count: int, total: int) -> str:
    return f"{count} of {_essays(total)} {_have(count or total)} completed it"
