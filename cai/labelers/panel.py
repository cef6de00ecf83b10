"""Which principles judge a comparison, and which worked examples a judge is shown first."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from cai.constitution import Constitution, Principle
from cai.errors import LabelerError, unknown
from cai.prompts import Shot
from cai.records import seed_of
from cai.types import Comparison, Turn

__all__ = ["NumPrinciples", "Panel", "shots"]

NumPrinciples = int | Literal["all"]


class Panel:
    """The principles of `constitution` (of those named in `only`, if any) that a comparison is judged by.

    With a number, that many are drawn for each comparison, in proportion to weight, and count alike. With `all`, every
    principle that applies to the prompt judges, and counts by its weight: that is what draws amount to on average.
    """

    def __init__(
        self, constitution: Constitution, num_principles: NumPrinciples, *, only: Sequence[str] | None, seed: int
    ) -> None:
        if num_principles != "all" and num_principles < 1:
            raise LabelerError(f"num_principles: must be at least 1, or all, got {num_principles}")
        known = {principle.id: principle for principle in constitution.principles}
        for name in only or ():
            if name not in known:
                raise LabelerError(f"principles: {unknown('principle', name, known)}")
        if only is not None and not only:
            raise LabelerError("principles: must name at least one principle, or be null for all of them, got []")
        self.constitution = constitution
        if only is not None:
            chosen = tuple(principle for principle in constitution.principles if principle.id in only)
            self.constitution = replace(constitution, principles=chosen)
        self._num_principles = num_principles
        self._seed = seed

    def judges_of(self, comparison: Comparison) -> tuple[Principle, ...]:
        """Those that judge this comparison; none when no principle applies to its prompt."""
        tags = comparison.prompt.tags
        candidates = self.constitution.for_tags(tags)
        if self._num_principles == "all" or not candidates:
            return candidates
        return self.constitution.draw(self._seed, comparison.id, tags, min(self._num_principles, len(candidates)))

    def weights(self) -> Mapping[str, float]:
        """How much each principle counts, by id."""
        all_judge = self._num_principles == "all"
        return {principle.id: principle.weight if all_judge else 1.0 for principle in self.constitution.principles}

    def unused(self, tags: Collection[str]) -> dict[str, str]:
        """See `Constitution.unused`."""
        return self.constitution.unused(tags)


def shots(constitution: Constitution, num_examples: int, *, seed: int) -> tuple[Shot, ...]:
    """The first `num_examples` examples of a constitution. The better response is shown first and second in turn, so
    that the examples favour neither place; `seed` decides which comes first. LabelerError when there are too few.
    """
    if not 0 <= num_examples <= len(constitution.examples):
        raise LabelerError(
            f"num_examples: {constitution.path} has {len(constitution.examples)} examples, got {num_examples}"
        )
    principles = {principle.id: principle for principle in constitution.principles}
    found = []
    for number, example in enumerate(constitution.examples[:num_examples]):
        better = (number + seed_of(seed, "examples")) % 2
        responses = (example.worse, example.better) if better else (example.better, example.worse)
        found.append(Shot((Turn("user", example.prompt),), responses, principles[example.principle], better))
    return tuple(found)
