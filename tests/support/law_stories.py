"""The stories in docs/completion.md: `python -m tests.support.law_stories` prints their table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseOutcome,
    PhaseReported,
)
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.progress import summarize
from bcs.domain.resolution import Decision, resolve
from bcs.domain.state import delta_of

_OK, _FAILED = Outcome.COMPLETED, Outcome.FAILED
_SUCCESS = "completed_successfully"


@dataclass(frozen=True)
class Story:
    """What happened to a batch, and what is answered for one phase of it.

    :param told: what happened, for a person.
    :param facts: the same, in any order.
    :param phase: the phase that is asked for.
    :param pruned: whether it need not run.
    """

    told: str
    facts: tuple[Fact, ...]
    phase: str
    pruned: bool
    settled: bool = False
    require_registration: bool = False

    def decision(self) -> Decision:
        """What is answered for the phase."""
        policy = CompleteWhen.EVERY_ESSAY_SETTLED if self.settled else CompleteWhen.EVERY_ESSAY_COMPLETED
        names = ("spellcheck", "nlp", "cj_assessment")
        requires = {"spellcheck": (), "nlp": ("spellcheck",), "cj_assessment": ("spellcheck",)}
        definitions = PipelineDefinitions(Phase(name, requires[name], complete_when=policy) for name in names)
        law = definitions.law(require_registration=self.require_registration)
        answer = resolve(definitions, self.phase, summarize(delta_of(self.facts), law, 1))
        return next(decision for decision in answer.decisions if decision.phase == self.phase)


def _spellchecked(*essays: str, outcome: Outcome = _OK, at_us: int = 2_000_000) -> tuple[Fact, ...]:
    return tuple(EssayPhaseEnded("spellcheck", essay, outcome, at_us) for essay in essays)


def _registered(*essays: str, at_us: int = 1_000_000) -> EssaysRegistered:
    return EssaysRegistered(essays, len(essays), at_us)


_THIRTY = tuple(f"e{number}" for number in range(30))
_THREE = ("e0", "e1", "e2")
_CJ_OF_TWO = PhaseOutcome(
    "cj_assessment", _SUCCESS, completed=("e0", "e1"), failed=(), speaks_for_all=False, at_us=3_000_000
)
_NLP_OF_NOBODY = PhaseOutcome(
    "nlp", _SUCCESS, completed=(), failed=(), speaks_for_all=True, at_us=3_000_000, repeat_key="key"
)
_OF_THREE = PhaseOutcome(
    "nlp", _SUCCESS, completed=_THREE, failed=(), speaks_for_all=False, at_us=3_000_000, repeat_key="key"
)

STORIES = (
    Story(
        "30 registered, 29 spellchecked",
        (_registered(*_THIRTY), *_spellchecked(*_THIRTY[1:])),
        "spellcheck",
        pruned=False,
    ),
    Story(
        "five registered, the ids of three known, and an outcome for these three",
        (
            EssaysRegistered((), 5, 1_000_000),
            *_spellchecked(*_THREE),
            PhaseOutcome(
                "spellcheck",
                _SUCCESS,
                completed=_THREE,
                failed=(),
                speaks_for_all=False,
                at_us=3_000_000,
                repeat_key="key",
            ),
        ),
        "spellcheck",
        pruned=False,
    ),
    Story(
        "three spellchecked; the comparative judgement names two, since it could not fetch the third text",
        (_registered(*_THREE), *_spellchecked(*_THREE), _CJ_OF_TWO),
        "cj_assessment",
        pruned=False,
    ),
    Story(
        "the same, under `every_essay_settled`",
        (_registered(*_THREE), *_spellchecked(*_THREE), _CJ_OF_TWO),
        "cj_assessment",
        pruned=True,
        settled=True,
    ),
    Story(
        "one failed spellcheck and ELS never retries; nlp names the other two; under `every_essay_settled`",
        (
            _registered(*_THREE),
            *_spellchecked("e0", "e1"),
            *_spellchecked("e2", outcome=_FAILED),
            PhaseOutcome(
                "nlp",
                "completed_with_failures",
                completed=("e0", "e1"),
                failed=(),
                speaks_for_all=False,
                at_us=3_000_000,
                repeat_key="key",
            ),
        ),
        "nlp",
        pruned=True,
        settled=True,
    ),
    Story(
        "all three failed, under `every_essay_settled`",
        (_registered(*_THREE), *_spellchecked(*_THREE, outcome=_FAILED)),
        "spellcheck",
        pruned=False,
        settled=True,
    ),
    Story(
        "two of three spellchecked; ELS says of nlp that it succeeded and names nobody",
        (_registered(*_THREE), *_spellchecked("e0", "e1"), _NLP_OF_NOBODY),
        "nlp",
        pruned=False,
    ),
    Story(
        "one essay spellchecked; the batch is not registered yet",
        _spellchecked("e0"),
        "spellcheck",
        pruned=True,
    ),
    Story(
        "the same, with `BCS_REQUIRE_REGISTRATION=true`",
        _spellchecked("e0"),
        "spellcheck",
        pruned=False,
        require_registration=True,
    ),
    Story(
        "spellcheck reported complete for an id that nobody else knows, such as a mistyped one",
        (PhaseReported("spellcheck", _OK, 2_000_000),),
        "spellcheck",
        pruned=True,
    ),
    Story(
        "nlp succeeded, was reported as failed, and a copy of the old outcome is relayed once more",
        (
            _registered(*_THREE),
            *_spellchecked(*_THREE),
            _OF_THREE,
            PhaseReported("nlp", _FAILED, 4_000_000),
            replace(_OF_THREE, at_us=5_000_000),
        ),
        "nlp",
        pruned=False,
    ),
    Story(
        "spellcheck reported complete, and an essay joined afterwards",
        (_registered(*_THREE), PhaseReported("spellcheck", _OK, 2_000_000), _registered("e3", at_us=3_000_000)),
        "spellcheck",
        pruned=False,
    ),
)


def stories_table() -> str:
    """The table in Markdown."""
    rows = ["| what is known | phase | answer | because |", "|---|---|---|---|"]
    for story in STORIES:
        decision = story.decision()
        answer = "runs" if decision.runs else "pruned"
        rows.append(f"| {story.told} | `{story.phase}` | {answer} | {decision.reason_text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(stories_table())  # noqa: T201
