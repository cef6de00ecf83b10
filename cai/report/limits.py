"""What the reader should hold against the report: its limits, and the parts that these runs do not have."""

from collections.abc import Sequence

from cai.report.labels import Labels
from cai.report.measures import Measures
from cai.report.runs import Policy, Run
from cai.report.statistics import SEEDS
from cai.report.wins import WinRate
from cai.report.words import joined

__all__ = ["absences", "limits"]


def limits(runs: Sequence[Run], measures: Measures, labels: Labels | None, rates: Sequence[WinRate]) -> list[str]:
    """Sentences that follow from how these runs were made."""
    seeds = sorted({run.seed for run in runs})
    found = [_seeds(len(seeds))]
    if len(measures.differences) > 1:
        labels_of = {c.name: c.label for c in measures.columns}
        declared = joined([labels_of[name].lower() for name in measures.declared])
        found.append(
            "Many differences are shown. Within each pair of policies their p-values are adjusted for their number "
            "(Holm); over the whole page they are not. "
            + (f"Declared beforehand to be what counts: {declared}." if declared else "No metric was declared.")
        )
    labelled = {arm.arm: arm.labeler for arm in labels.arms} if labels else {}
    own_judge = [run.arm for run in runs if _same_judge(run)]
    if any(rate.judge != "gold" for rate in rates) and own_judge:
        found.append(
            f"The AI judge of the win rates is the model that labelled for {joined(list(dict.fromkeys(own_judge)))}, "
            "which is an advantage for that arm: read the rates measured without it too."
        )
    simulated = joined([arm for arm, labeler in labelled.items() if "simulated" in labeler])
    if simulated and any(column.name == "gold" for column in measures.columns):
        found.append(
            f"{simulated} was labelled by simulated people, whose values are exactly the gold score plus noise. "
            "On that score it has the home advantage; real people's values would differ from the measure."
        )
    elif simulated:
        found.append(
            f"{simulated} was labelled by simulated people, who value one column of the scorer; not by people."
        )
    found.append(
        "Intervals are about other prompts of the same source"
        + (" and other seeds" if len(seeds) >= SEEDS else "")
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


def _same_judge(run: Run) -> bool:
    """Whether the model that labelled the run's comparisons is the one that judges its win rates."""
    label, judge = ((run.config.get(key) or {}).get("labeler") or {} for key in ("label", "win_rate"))
    return bool(judge) and all(label.get(key) == judge.get(key) for key in ("_target_", "model"))


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
