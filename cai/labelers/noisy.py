"""Label noise on purpose: a labeler whose verdicts are turned over, or made less sure, at a known rate."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cai.errors import LabelerError
from cai.labelers.base import Keeper, Labeler
from cai.labelers.feedback import own_pairs
from cai.records import seed_of
from cai.types import Comparison, Judgment, Pair

__all__ = ["NoisyLabeler"]


class NoisyLabeler:
    """What `labeler` says, with a share `flip_rate` of its pairs turned over, p to 1 - p, and all of them drawn towards
    1/2 by the share `soften`.

    Which pairs are turned over is seeded by judgment and pair. What was said is kept: every pair has a row of evidence
    with `given`, the p before, and `flipped`. Pairs of a correction stay as they are, for it was written to be better.
    """

    name = "noisy"

    def __init__(self, *, labeler: Labeler, seed: int, flip_rate: float = 0.0, soften: float = 0.0) -> None:
        for key, rate in (("flip_rate", flip_rate), ("soften", soften)):
            if not 0 <= rate <= 1:
                raise LabelerError(f"{key}: must be a share from 0 to 1, got {rate}")
        self.name = f"{labeler.name}+noise"
        self._labeler = labeler
        self._seed = seed
        self._flip_rate = flip_rate
        self._soften = soften

    def keep_in(self, folder: Path) -> None:
        """See `cai.labelers.base.Keeper`."""
        if isinstance(self._labeler, Keeper):
            self._labeler.keep_in(folder)

    def texts(self) -> dict[str, str]:
        """What the labeler depends on."""
        return self._labeler.texts()

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """The labeler's judgments, with noise."""
        for judgment in self._labeler.label(comparisons, done=done):
            own = own_pairs(judgment)
            flips = [seed_of(self._seed, "flip", judgment.id, q.first, q.second) / 2**63 < self._flip_rate for q in own]
            noisy = [self._noisy(pair, flip) for pair, flip in zip(own, flips, strict=True)]
            rows = [
                {"pair": [pair.first, pair.second], "given": pair.p, "flipped": flip}
                for pair, flip in zip(own, flips, strict=True)
            ]
            rest = [pair for pair in judgment.pairs if pair not in own]
            name = f"{judgment.labeler}+noise"
            yield replace(judgment, labeler=name, pairs=(*noisy, *rest), evidence=(*judgment.evidence, *rows))

    def facts(self) -> dict[str, float]:
        """The labeler's."""
        return self._labeler.facts()

    def _noisy(self, pair: Pair, flip: bool) -> Pair:
        p = 1 - pair.p if flip else pair.p
        return replace(pair, p=p + self._soften * (0.5 - p))
