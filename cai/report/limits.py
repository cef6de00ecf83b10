"""What the reader should hold against the report: its limits, and the parts that these runs do not have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai.report.effects import Effect
from cai.report.labels import Labels
from cai.report.measures import Measures
from cai.report.runs import MANY, Policy, Run, num_seeds
from cai.report.statistics import SEEDS
from cai.report.wins import WinRate
from cai.report.words import joined

__all__ = ["absences", "limits"]


def limits(
    runs: Sequence[Run], measures: Measures, labels: Labels | None, rates: Sequence[WinRate], effects: Sequence[Effect]
) -> list[str]:
    """Sentences that follow from how these runs were made."""
    num = num_seeds(runs)
    found = [_seeds(num), *_fewer_seeds(num, measures, effects)]
    if len(measures.differences) > 1:
        labels_of = {c.name: c.label for c in measures.columns}
        declared = joined([labels_of[name].lower() for name in measures.declared])
        found.append(
            "Many differences are shown. Within each pair of policies their p-values are adjusted for their number "
            "(Holm); over the whole page they are not. "
            + (f"Declared beforehand to be what counts: {declared}." if declared else "No metric was declared.")
        )
    if labels and labels.apart:
        which = joined([f"{a} and {b}" for a, b in labels.apart])
        found.append(
            "Labels are compared only where they are about the same responses, which "
            + (f"{len(labels.apart)} pairs of arms" if len(labels.apart) > MANY else f"those of {which}")
            + " are not in all seeds."
        )
    labelled = {arm.arm: arm.labeler for arm in labels.arms} if labels else {}
    own_judge = [run.arm for run in runs if _same_judge(run)]
    if any(rate.judge != "gold" for rate in rates) and own_judge:
        found.append(
            f"The AI judge of the win rates is the model that labelled for {joined(list(dict.fromkeys(own_judge)))}, "
            "which is an advantage for that arm: read the rates measured without it too."
        )
    simulated = [arm for arm, labeler in labelled.items() if "simulated" in labeler]
    has_gold = any(column.name == "gold" for column in measures.columns)
    golden = [run.arm for run in runs if has_gold and any(map(_values_gold, _labelers(run, "label")))]
    at_home = joined([arm for arm in simulated if arm in golden])
    others = joined([arm for arm in simulated if arm not in golden])
    if at_home:
        found.append(
            f"{at_home} was labelled by simulated people, whose values are exactly the gold score plus noise. "
            "On that score it has the home advantage; real people's values would differ from the measure."
        )
    if others:
        found.append(f"{others} was labelled by simulated people, who value columns of the scorer; not by people.")
    found.append(
        "Intervals are about other prompts of the same source"
        + (" and other seeds" if num >= SEEDS else "")
        + ". They say nothing about other sources of prompts, larger models or other languages."
    )
    return found


def _seeds(num: int) -> str:
    if num < SEEDS:
        return (
            f"{'One seed' if num == 1 else 'Two seeds'}. The intervals hold for the very models that were trained; "
            "training again with another seed may move a figure by more than its interval. A difference between arms "
            "needs three seeds or more."
        )
    return (
        f"{num} seeds. Intervals are about training again with other seeds, on other prompts: Student's t over the "
        f"seeds, which makes them wide where seeds are few."
    )


def _fewer_seeds(num: int, measures: Measures, effects: Sequence[Effect]) -> Iterator[str]:
    """Which comparisons rest on fewer seeds than there are, by how many; or, without seeds in common, on no others."""
    behind: dict[int, dict[str, None]] = {}
    for name, estimate in (
        *((f"{d.first} against {d.second}", d.estimate) for d in measures.differences),
        *((f"{e.key} {e.level} against {e.reference}", own) for e in effects for own in e.columns.values()),
    ):
        if 0 < len(estimate.per_seed) < num or (not estimate.per_seed and estimate.method == "bootstrap"):
            behind.setdefault(len(estimate.per_seed), {})[name] = None
    for fewer, names in sorted(behind.items()):
        which = joined(list(names)) if len(names) <= MANY else f"{len(names)} comparisons"
        few = ": their intervals are about the very models that were trained" if fewer < SEEDS <= num else ""
        none = "No seed is in common, and fewer than three on a side"
        some = f"Not all {num} seeds are behind every comparison. On {fewer}"
        yield f"{some if fewer else none}, in some column at least: {which}{few}."


def _same_judge(run: Run) -> bool:
    """Whether a model that labelled the run's comparisons is the one that judges its win rates."""
    judge = next(_labelers(run, "win_rate"), None)
    same = ("_target_", "model")
    return judge is not None and any(
        all(label.get(key) == judge.get(key) for key in same) for label in _labelers(run, "label")
    )


def _values_gold(labeler: Mapping[str, Any]) -> bool:
    is_simulated = ".simulated." in labeler.get("_target_", "")
    return is_simulated and labeler.get("column", "gold") == "gold" and not labeler.get("groups")


def _labelers(run: Run, stage: str) -> Iterator[Mapping[str, Any]]:
    """The labeler of a stage, and those that it is made of (`mixed`, `noisy`)."""
    waiting = [(run.config.get(stage) or {}).get("labeler") or {}]
    while waiting:
        node = waiting.pop(0)
        if node:
            yield node
        waiting += [node["labeler"]] if "labeler" in node else []
        waiting += (node.get("labelers") or {}).values()


def absences(
    runs: Sequence[Run], policies: Sequence[Policy], measures: Measures, rates: Sequence[WinRate]
) -> dict[str, str]:
    """By part of the page: why it (or a piece of it) is not there."""
    names = {c.name for c in measures.columns}
    stages = {stage for run in runs for stage in run.outputs}
    absent = {}
    if not policies:
        absent["responses"] = "No model was evaluated in these runs."
    else:
        unfinished = [arm for arm in dict.fromkeys(run.arm for run in runs) if arm not in {p.name for p in policies}]
        if unfinished:
            absent["responses"] = f"No policy of {joined(unfinished)} was evaluated."
    if policies and "gold" not in names:
        absent["gold"] = "There is no gold score: nothing in this data measures a response as a whole."
    if policies and not {"harmful_compliance", "helpful"} <= names:
        absent["pareto"] = (
            "The trade-off between helpfulness and harmlessness is left out: this data's scorer does not measure both."
        )
    for part, stage, text in (
        ("wins", "win_rate", "No win rates: these runs have no win_rate stage."),
        ("labels", "label", "No labels: these runs have no label stage."),
        ("reward", "reward", "No reward model was trained in these runs."),
        ("rl", "rl", "No RL stage in these runs."),
        ("revise", "revise", "No critiques or revisions in these runs."),
    ):
        if not any(name == stage or name.startswith(f"{stage}_over_") for name in stages):
            absent[part] = text
    if "wins" not in absent and not rates:
        absent["wins"] = "No win rates: the judge abstained from every pair, and there is no gold score to compare."
    return absent
