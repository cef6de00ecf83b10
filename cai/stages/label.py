"""Stage label: a labeler judges the comparisons; this is the only place that decides between RLHF and RLAIF."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cai.errors import LabelerError
from cai.labelers.aggregate import Aggregate, check_aggregate, labels_of, preference_from
from cai.labelers.base import Labeler
from cai.labelers.feedback import own_pairs
from cai.labelers.journaled import label_journaled
from cai.labelers.statistics import (
    between_people,
    by_principle,
    injected,
    position,
    said,
    served,
    unanswered,
    verdicts,
    with_gold,
)
from cai.noise import monotonicity
from cai.records import read_records, write_json, write_records, write_rows
from cai.scorers import Scorer
from cai.types import Comparison, Judgment

__all__ = ["Label"]


class Label:
    """Writes judgments.jsonl (Judgment), preferences.jsonl (Preference), label.json and, where a judge was asked
    questions that it gave no answer to, failed.jsonl (a row per question, with the reason). Where gold is measured,
    gold.jsonl has that of every comparison's responses.

    A comparison may have several judgments, by different people. All are kept, they measure agreement, and `aggregate`
    (`cai.labelers.aggregate`) makes its label of them: the first, the majority or the mean. An abstention gives no
    preference. `scorer` measures the labels against its `gold` column, where it has one, and changes none of them;
    where the responses have noise levels, also whether gold falls with noise (`noise`).
    """

    version: ClassVar[int] = 4

    def __init__(self, *, labeler: Labeler, scorer: Scorer | None = None, aggregate: Aggregate = "first") -> None:
        check_aggregate(aggregate)
        self._labeler = labeler
        self._aggregate: Aggregate = aggregate
        self._scorer = scorer

    def texts(self) -> dict[str, str]:
        """What the labeler and the scorer depend on."""
        return self._labeler.texts() | (self._scorer.texts() if self._scorer else {})

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `sample`. Raises LabelerError when every comparison is an abstention."""
        comparisons = read_records(inputs["sample"] / "comparisons.jsonl", Comparison)
        judgments = label_journaled(self._labeler, comparisons, output / "judgments.journal", title="label")
        found = labels_of(judgments, self._aggregate)
        labels = found.by_comparison
        gold = self._gold(comparisons)
        summary = self._summary(comparisons, judgments, labels, gold) | {"num_tied": found.num_tied}
        if comparisons and summary["num_abstained"] == len(comparisons):
            reasons = ", ".join(f"{reason}: {number}" for reason, number in summary["abstained"].items())
            raise LabelerError(
                f"labeler {self._labeler.name!r} abstained from all {len(comparisons)} comparisons ({reasons}); "
                f"there is nothing to train a reward model on. What it said: {output / 'judgments.journal'}"
            )
        given: dict[str, list[Judgment]] = defaultdict(list)
        for judgment in judgments:
            given[judgment.comparison_id].append(judgment)
        preferences = [
            preference_from(comparison, given[comparison.id], labels[comparison.id])
            for comparison in comparisons
            if labels[comparison.id].pairs
        ]
        write_records(output / "judgments.jsonl", judgments)
        write_records(output / "preferences.jsonl", preferences)
        if failed := unanswered(judgments):
            write_rows(output / "failed.jsonl", failed)
        if gold is not None:
            plain = {name: [None if math.isnan(x) else x for x in scores] for name, scores in gold.items()}
            write_rows(output / "gold.jsonl", ({"comparison_id": name, "gold": row} for name, row in plain.items()))
        write_json(output / "label.json", summary)
        return {**_facts(summary), **self._labeler.facts()}

    def _summary(
        self, comparisons: Sequence[Comparison], judgments: Sequence[Judgment], labels: Mapping[str, Judgment],
        gold: Mapping[str, Sequence[float]] | None,
    ) -> dict[str, Any]:  # fmt: skip
        principles = Counter(principle_id for label in labels.values() for principle_id in label.principle_ids)
        feedback = said(judgments)
        ladder = None if gold is None else monotonicity(comparisons, gold)
        return {
            "labeler": self._labeler.name,
            "labelers": dict(sorted(Counter(judgment.labeler for judgment in judgments).items())),
            "aggregate": self._aggregate,
            "num_comparisons": len(comparisons),
            "num_judgments": len(judgments),
            "num_judgments_each": _sizes(judgments),
            **verdicts(labels.values()),
            "num_pairs_without_label": _num_without_label(comparisons, labels),
            "position": position(judgments),
            "between_people": between_people(judgments),
            "gold": None if gold is None else with_gold(comparisons, labels, gold),
            **({} if ladder is None else {"noise": ladder}),
            "principles": dict(sorted(principles.items())),
            "by_principle": by_principle(labels.values(), gold),
            "injected": injected(judgments),
            "served": served(judgments),
            **({} if feedback is None else {"feedback": feedback}),
            "people": dict(sorted(Counter(judgment.person for judgment in judgments if judgment.person).items())),
        }

    def _gold(self, comparisons: Sequence[Comparison]) -> dict[str, list[float]] | None:
        """The gold column by comparison; None when nobody measures it."""
        if self._scorer is None:
            return None
        prompts = [comparison.prompt for comparison in comparisons for _ in comparison.responses]
        texts = [response.text for comparison in comparisons for response in comparison.responses]
        columns = self._scorer.score(prompts, texts)
        if "gold" not in columns:
            return None
        scores = iter(columns["gold"])
        return {comparison.id: [next(scores) for _ in comparison.responses] for comparison in comparisons}


def _sizes(judgments: Sequence[Judgment]) -> dict[str, int]:
    """How many comparisons have how many judgments."""
    each = Counter(judgment.comparison_id for judgment in judgments)
    return {str(size): number for size, number in sorted(Counter(each.values()).items())}


def _num_without_label(comparisons: Sequence[Comparison], labels: Mapping[str, Judgment]) -> int:
    """Pairs of the comparisons that were judged which got no label: tied, undecided or ill-formed."""
    judged = [comparison for comparison in comparisons if labels[comparison.id].pairs]
    whole = sum(len(c.responses) * (len(c.responses) - 1) // 2 for c in judged)
    return whole - sum(len(own_pairs(labels[comparison.id])) for comparison in judged)


def _facts(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the summary that belong on the stage's one line; rates over nothing are left out."""
    wanted = {
        "num_judgments": summary["num_judgments"],
        "num_abstained": summary["num_abstained"],
        "num_neutralised": summary["num_neutralised"] or None,
        "num_tied": summary["num_tied"] or None,
        "num_flipped": summary["injected"]["num_flipped"] if summary["injected"] else None,
        "mean_distance": summary["mean_distance"],
        "same_position": summary["position"]["same_position"],
        "agreement": summary["between_people"]["agreement"],
        "gold_agreement": summary["gold"]["agreement"] if summary["gold"] else None,
        "gold_noise_spearman": summary["noise"]["spearman"] if "noise" in summary else None,
    }
    if summary["served"]:
        wanted["num_unanswered"] = summary["served"]["num_unanswered"]
    return {name: float(value) for name, value in wanted.items() if value is not None}
