"""What people are asked about a comparison, and how many people. No web and no database in here."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from cai.codec import to_json
from cai.errors import LabelerError
from cai.records import fingerprint, seed_of
from cai.types import Comparison, Feedback

__all__ = ["Form", "Gold", "shown_order", "task_id"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """A comparison whose answer is known: `feedback` is what an expert said. People get these among the others."""

    comparison: Comparison
    feedback: Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The questions on the page, and how the work is shared out.

    A verdict is always asked: which of two responses is better, or a ranking of more; ties are allowed. `strength` asks
    how much better (of two), `ratings` for 1 to 7 and `flags` (name: question) for yes or no per response, `correction`
    lets people edit a response, `critique` asks what is good or bad in words. `num_labels` people label a share
    `overlap` of the comparisons, one the rest. A share `gold_share` of what a person gets is gold; the admin page
    points at people who agree with less than `min_agreement` of it, once they have answered `min_gold`. `margins`
    is what the strengths are worth to the reward model (`cai.labelers.feedback.pairs_of`); nobody is asked about it.
    """

    instructions: str
    strength: bool = False
    ratings: bool = False
    flags: dict[str, str] = field(default_factory=dict)
    correction: bool = False
    critique: bool = False
    skip_reasons: tuple[str, ...] = ("unclear",)
    overlap: float = 0.0
    num_labels: int = 2
    gold_share: float = 0.0
    min_gold: int = 10
    min_agreement: float = 0.75
    margins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("overlap", "gold_share", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise LabelerError(f"{name}: must be a share from 0 to 1, got {getattr(self, name)}")
        if self.gold_share == 1:
            raise LabelerError("gold_share: must be below 1, or people would label nothing else")
        for name in ("num_labels", "min_gold"):
            if getattr(self, name) < 1:
                raise LabelerError(f"{name}: must be 1 or more, got {getattr(self, name)}")
        if not self.instructions.strip():
            raise LabelerError("instructions: must say what people are to do, got an empty text")
        for name, question in self.flags.items():
            if not (isinstance(name, str) and _NAME.fullmatch(name)) or not question.strip():
                raise LabelerError(
                    f"flags: must be name: question, names in a-z, 0-9 and _, got {name!r}: {question!r}"
                )
        if len(self.flags) > 9:
            raise LabelerError(f"flags: must be 9 at most, which have keys of their own, got {len(self.flags)}")
        if not self.skip_reasons or not all(reason.strip() for reason in self.skip_reasons):
            raise LabelerError(f"skip_reasons: must be one or more reasons, got {list(self.skip_reasons)}")

    @property
    def version(self) -> str:
        """Of the instructions: 12 hex digits of their SHA-256, so that another text is another version."""
        return hashlib.sha256(self.instructions.encode("utf-8")).hexdigest()[:12]

    def num_wanted(self, comparison_id: str) -> int:
        """How many people are to label a comparison; hangs on its id alone."""
        overlaps = seed_of(0, "overlap", comparison_id) < self.overlap * 2**63
        return self.num_labels if overlaps else 1


def task_id(comparison: Comparison, form: Form) -> str:
    """Of a comparison as it is asked: its texts and the questions, so that no answer is taken for one to another."""
    asked = [form.strength, form.ratings, form.flags, form.correction, form.critique]
    return fingerprint([to_json(comparison), asked])[:32]


def shown_order(task: str, labeler: str, num_responses: int) -> tuple[int, ...]:
    """The order in which a person sees the responses: a shuffle seeded by task and name, the same at every visit."""
    return tuple(sorted(range(num_responses), key=lambda index: seed_of(0, "shown", task, labeler, index)))
