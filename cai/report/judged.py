"""The judgments of label stages as the report reads them: labels, prompts, and what is known of gold."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cai.labelers.aggregate import Aggregate, labels_of
from cai.labelers.feedback import own_pairs
from cai.labelers.statistics import principle_verdicts
from cai.report.runs import Run, by_arm
from cai.types import Judgment, Pair

__all__ = ["Judged", "Key", "judged_by_arm", "key_of"]

Key = tuple[str, int, int]  # comparison id and the two responses


@dataclass(frozen=True, slots=True)
class Judged:
    """One arm in one seed: judgments, the prompt of each comparison, and what is known of gold: differences by pair
    from whoever labelled by gold, or else the (agreement, number of pairs) that the label stage counted itself.
    `by_comparison` are the labels. `sampled` tells the responses that they are about: comparisons are named by their
    prompts, and those of another model have the same names.
    """

    judgments: list[Judgment]
    by_comparison: dict[str, Judgment]
    prompts: dict[str, str]
    gold: dict[Key, float]
    counted: tuple[float, int] | None
    sampled: str

    def labels(self) -> Iterator[tuple[Key, float]]:
        """The label of every pair of sampled responses: probability of the pair's first response."""
        for judgment in self.by_comparison.values():
            for pair in own_pairs(judgment):
                yield key_of(judgment, pair), pair.p

    def verdicts(self) -> Iterator[tuple[str, Key, float]]:
        """(principle, pair, p of the pair's first response) of every principle that judged, each by itself."""
        for judgment in self.by_comparison.values():
            for principle, (i, j), p in principle_verdicts(judgment):
                yield principle, (judgment.comparison_id, i, j), p

    def prompt(self, key: Key) -> str:
        """What the bootstrap resamples."""
        return self.prompts.get(key[0], key[0])


def judged_by_arm(runs: Sequence[Run]) -> dict[str, dict[int, Judged]]:
    """By arm and seed, of the runs that have labels."""
    labelled = [run for run in runs if "label" in run.outputs]
    judgments = {run.folder: run.outputs["label"].records("judgments.jsonl", Judgment) or [] for run in labelled}
    gold: dict[str, dict[Key, float]] = defaultdict(dict)
    prompts: dict[str, dict[str, str]] = {}
    for run in labelled:
        sampled = _sampled(run)
        gold[sampled] |= _gold(run, judgments[run.folder])
        if sampled not in prompts:
            prompts[sampled] = _prompts(run)
    return {
        arm: {
            run.seed: Judged(
                judgments[run.folder],
                labels_of(judgments[run.folder], _aggregate(run)).by_comparison,
                prompts[_sampled(run)],
                gold[_sampled(run)],
                _counted(run),
                _sampled(run),
            )
            for run in own
        }
        for arm, own in by_arm(labelled).items()
    }


def _sampled(run: Run) -> str:
    """Which comparisons the run's labels are about."""
    return run.outputs["sample"].fingerprint if "sample" in run.outputs else f"{run.folder}"


def _aggregate(run: Run) -> Aggregate:
    """How the run's label stage made labels of judgments."""
    how: Aggregate = (run.config.get("label") or {}).get("aggregate", "first")
    return how


def _prompts(run: Run) -> dict[str, str]:
    """Prompt id by comparison id."""
    rows = run.outputs["sample"].rows("comparisons.jsonl") if "sample" in run.outputs else None
    return {row["id"]: row["prompt"]["id"] for row in rows or ()}


def _gold(run: Run, judgments: Sequence[Judgment]) -> dict[Key, float]:
    """Gold differences (first - second) by pair: as the label stage measured them, or else from evidence rows with a
    `gold` pair. Simulated people may be told to value another column; what they then call gold is no measure.
    """
    measured = run.outputs["label"].rows("gold.jsonl")
    if measured is not None:
        return {
            (row["comparison_id"], i, j): row["gold"][i] - row["gold"][j]
            for row in measured
            for i, j in combinations(range(len(row["gold"])), 2)
            if row["gold"][i] is not None and row["gold"][j] is not None
        }
    labeler = (run.config.get("label") or {}).get("labeler") or {}
    if labeler.get("column", "gold") != "gold":
        return {}
    found: dict[Key, float] = {}
    for judgment in judgments:
        for row in judgment.evidence:
            if "gold" in row:
                pair: Any = row["pair"]
                gold: Any = row["gold"]
                found[(judgment.comparison_id, pair[0], pair[1])] = gold[0] - gold[1]
    return found


def _counted(run: Run) -> tuple[float, int] | None:
    """What label.json says of agreement with gold."""
    gold = (run.outputs["label"].json("label.json") or {}).get("gold")
    return (gold["agreement"], gold["num_pairs"]) if gold and gold["agreement"] is not None else None


def key_of(judgment: Judgment, pair: Pair) -> Key:
    return judgment.comparison_id, pair.first, pair.second
