"""`cai constitution test`: a constitution's own examples, judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.constitution import Example
from cai.types import Prompt, Turn
from cai.workbench.bench import Asked, Bench, comparison, judged

__all__ = ["Outcome", "judge_examples"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An example, and what the judge says of `better` (shown first) and `worse` under its principle."""

    example: Example
    asked: Asked

    @property
    def passes(self) -> bool:
        """Whether the label would prefer the better response; no label is no pass."""
        return self.asked.p is not None and self.asked.p > 0.5


def judge_examples(bench: Bench) -> Sequence[Outcome]:
    """Every example under its principle, whatever prompts that one applies to, in both orders."""
    principles = {principle.id: principle for principle in bench.constitution.principles}
    examples = bench.constitution.examples
    asked = [
        (
            comparison(Prompt(id=f"example-{number}", turns=(Turn("user", e.prompt),)), e.better, e.worse),
            principles[e.principle],
        )
        for number, e in enumerate(examples, start=1)
    ]
    return [Outcome(e, answer) for e, answer in zip(examples, judged(bench, asked, "examples"), strict=True)]
