"""Rewards beyond the reward model: any scorer's column, a judge (`cai.labelers.rating`), and a weighted sum of several.

A run's `rewards` is a list of parts, each a name, a weight and a reward; none means the reward model alone. A Python
function or a rule is a scorer (`cai.scorers.Scorer`) of the user's own, named by its `_target_`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cai.errors import ConfigError, unknown
from cai.scorers import Scorer
from cai.types import Prompt

__all__ = ["ColumnReward", "Part", "Reward", "Rewarded", "Scored", "check_parts", "score", "texts_of"]


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A number for each response, NaN where the reward does not apply; and, from a judge, 1 for each response that it
    was shown with a marker of its prompt's format broken up (`cai.prompts`), 0 for the others.
    """

    values: list[float]
    neutralised: list[float] | None = None


@runtime_checkable
class Reward(Protocol):
    """Gives every response a number that a policy is to raise."""

    def texts(self) -> dict[str, str]:
        """Hashes of the files that decide the numbers, for the stages' fingerprints."""
        ...

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Rewarded:
        """A number for each response."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One term of a weighted sum of rewards; `reward` None stands for the reward model of the run."""

    name: str
    weight: float = 1.0
    reward: Reward | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ConfigError(f"weight: of the reward {self.name!r} must be a finite number, got {self.weight!r}")

    def texts(self) -> dict[str, str]:
        """What the reward depends on, under the part's name."""
        texts = self.reward.texts() if self.reward else {}
        return {f"rewards.{self.name}.{key}": value for key, value in texts.items()}


def check_parts(parts: Sequence[Part]) -> None:
    """Raise ConfigError when two parts have one name, or a name is that of what is counted."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ConfigError(f"rewards: names must differ, got {', '.join(names)}")
    for name in names:
        if name.endswith(("_missing", "_neutralised")):
            raise ConfigError(f"rewards: name {name!r}: must not end in _missing or _neutralised, which are counts")


def texts_of(parts: Sequence[Part]) -> dict[str, str]:
    """What all parts depend on, for the fingerprint of a stage that uses them."""
    return {key: value for part in parts for key, value in part.texts().items()}


@dataclass(frozen=True, slots=True)
class Scored:
    """The weighted sum for each response, and under each part's name its unweighted numbers (NaN: not applicable), with
    `<name>_missing` (1 where it is NaN, so that its mean is a share) and, of a judge, `<name>_neutralised`.
    """

    total: list[float]
    parts: dict[str, list[float]]


def score(
    parts: Sequence[Part], prompts: Sequence[Prompt], responses: Sequence[str], learnt: Sequence[float]
) -> Scored:
    """The sum of weight times reward over `parts`, in which `learnt` are the scores of the reward model; without parts,
    those. A reward that does not apply to a response adds nothing to its sum, and is counted.
    """
    if not parts:
        return Scored(list(learnt), {})
    total = [0.0] * len(responses)
    columns: dict[str, list[float]] = {}
    for part in parts:
        found = part.reward.score(prompts, responses) if part.reward else Rewarded(list(learnt))
        missing = [math.isnan(value) for value in found.values]
        rows = zip(total, found.values, missing, strict=True)
        total = [sum_ if absent else sum_ + part.weight * value for sum_, value, absent in rows]
        columns[part.name] = found.values
        if part.reward:
            columns[f"{part.name}_missing"] = [float(absent) for absent in missing]
        if found.neutralised is not None:
            columns[f"{part.name}_neutralised"] = found.neutralised
    return Scored(total, columns)


class ColumnReward:
    """A column of a scorer."""

    def __init__(self, *, scorer: Scorer, column: str) -> None:
        if column not in scorer.columns:
            raise ConfigError(f"column: {unknown('column of the scorer', column, scorer.columns)}")
        self._scorer = scorer
        self._column = column

    def texts(self) -> dict[str, str]:
        """What the scorer depends on."""
        return self._scorer.texts()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Rewarded:
        """The column."""
        return Rewarded(list(self._scorer.score(prompts, responses)[self._column]))
