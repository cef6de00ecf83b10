"""Labels from nobody: the responses were sampled with different amounts of noise, and less noise is better (D-REX)."""

import itertools
from collections.abc import Collection, Iterator, Sequence

from cai.errors import LabelerError
from cai.noise import Ladder
from cai.types import Comparison, Judgment, Pair

__all__ = ["NoiseLabeler"]


class NoiseLabeler:
    """Prefers, of two responses, the one whose noise level is lower by more than `min_gap`; others give no pair.

    `ladder` is how the stage `sample` is to make the responses: it reads it from here. D-REX leaves out pairs of levels
    that are close (0.3 in its experiments on MuJoCo), whose order chance may turn over.
    """

    name = "noise"

    def __init__(self, *, ladder: Ladder, min_gap: float = 0.0) -> None:
        widest = max(ladder.levels) - min(ladder.levels)
        if not 0 <= min_gap < widest:
            raise LabelerError(f"min_gap: must be from 0 to below {widest:g}, the ladder's height, got {min_gap}")
        self._ladder = ladder
        self._min_gap = min_gap
        self._facts: dict[str, float] = {}

    def texts(self) -> dict[str, str]:
        """None: it reads no text at all."""
        return {}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """A judgment of each comparison. Raises LabelerError for a response whose noise is not of the ladder."""
        num_close = 0
        for comparison in comparisons:
            judgment = self._judge(comparison)
            size = len(comparison.responses)
            num_close += size * (size - 1) // 2 - len(judgment.pairs)
            if comparison.id not in done:
                yield judgment
        self._facts = {"num_close_pairs": num_close}

    def facts(self) -> dict[str, float]:
        """How many pairs of the last call had noise levels too close to say which is better."""
        return dict(self._facts)

    def _judge(self, comparison: Comparison) -> Judgment:
        noise = [self._level(comparison, number) for number in range(len(comparison.responses))]
        pairs = tuple(
            Pair(i, j, float(noise[i] < noise[j]))
            for i, j in itertools.combinations(range(len(noise)), 2)
            if abs(noise[i] - noise[j]) > self._min_gap
        )
        return Judgment(
            id=f"{comparison.id}/0",
            comparison_id=comparison.id,
            labeler=self.name,
            person="",
            pairs=pairs,
            evidence=({"noise": noise},),
            abstained=None if pairs else "noise_levels_too_close",
        )

    def _level(self, comparison: Comparison, number: int) -> float:
        response = comparison.responses[number]
        if response.noise is None or response.noise not in self._ladder.levels:
            raise LabelerError(
                f"response {response.id!r} has noise {response.noise}, which is no level of the ladder "
                f"{list(self._ladder.levels)}: were the responses sampled with `sample.ladder`?"
            )
        return response.noise
