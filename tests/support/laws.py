"""The law of completion of the phases that ship."""

from bcs.domain.law import CompletionLaw

LAW = CompletionLaw(
    {
        "spellcheck": (),
        "nlp": ("spellcheck",),
        "cj_assessment": ("spellcheck",),
        "ai_feedback": ("spellcheck",),
        "student_matching": (),
    }
)
