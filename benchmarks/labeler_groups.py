"""Does a reward model know people who gave it no labels? Five-fold cross-validation over labelers (InstructGPT, 5.3).

    python benchmarks/labeler_groups.py [--seeds 0,1,2] [--output benchmarks/results/labeler_groups.json]
    python benchmarks/labeler_groups.py --runs runs/mine        # of a finished run whose labelers have names

The labelers are parted into groups; for each group a reward model is trained on the labels of all others, and asked
about prompts that it has not seen: how often does it agree with the people it learnt from (in-group), and how often
with the group that was held out? InstructGPT: 72.4 +- 0.4 % and 69.6 +- 0.9 %. Here people are simulated. `--by person`
parts them at random, as InstructGPT did: everybody's weights differ a little. `--by group` holds out people who value
something that nobody else does.
"""

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import machine
from recipe_runs import recipe_run

from cai import config
from cai.datasets.splits import held_out
from cai.labelers.aggregate import labels_of, preference_from
from cai.labelers.people import group_of
from cai.records import read_json, read_records, write_json, write_records
from cai.report.resampling import mean_table
from cai.report.statistics import Bootstrap, Estimate
from cai.rl.models import RewardModel
from cai.types import Comparison, Judgment

STEPS = "steps=[data,revise,sft,sample,label]"
GROUPS = (
    "labeler.groups={plain:{gold:1},polite:{gold:1,polite:1.5},brief:{gold:1,num_words:-0.15},"
    "strict:{gold:1,harmful_compliance:-2},frank:{gold:1,polite:-1.5}}"
)
LABELER = [
    *("labeler=simulated", "labeler.num_people=20", "labeler.num_labels=5", GROUPS, "labeler.spread=0.5"),
    "labeler.agreement=0.66",  # as in AlpacaFarm; people of such different values cannot agree at 72.6 %
]
SHARE = "0.2"  # of the prompts, which the reward models do not see
Rows = dict[int, list[tuple[str, float]]]  # by seed: prompt, agrees


def folds_of(people: Collection[str], by: str, num_folds: int, seed: int) -> list[set[str]]:
    """The people, parted: at random into equal parts, or by the group that their names tell."""
    if by == "group":
        groups = sorted({group_of(person) for person in people})
        return [{person for person in people if group_of(person) == group} for group in groups]
    order = sorted(people)
    random.Random(seed).shuffle(order)
    return [set(order[number::num_folds]) for number in range(num_folds)]


def accuracies(
    stages: Mapping[str, Path], overrides: Sequence[str], seed: int, by: str, num_folds: int, found: Mapping[str, Rows]
) -> None:
    """Train a reward model for every fold of one seed, and add to `found` how it agrees with either side."""
    comparisons = read_records(stages["sample"] / "comparisons.jsonl", Comparison)
    judgments = [j for j in read_records(stages["label"] / "judgments.jsonl", Judgment) if j.pairs]
    given: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        given[judgment.comparison_id].append(judgment)
    out = held_out([comparison.prompt for comparison in comparisons], float(SHARE))
    unseen = {c.id: c for c, held in zip(comparisons, out, strict=True) if held}
    settings = config.compose([*overrides, STEPS.replace("label]", "label,reward]"), f"reward.held_out_share={SHARE}"])
    for fold in folds_of({judgment.person for judgment in judgments}, by, num_folds, seed):
        with tempfile.TemporaryDirectory() as folder:
            label, output = Path(folder) / "label", Path(folder) / "reward"
            labels = labels_of([j for j in judgments if j.person not in fold], "mean").by_comparison
            known = [c for c in comparisons if c.id in labels]
            write_records(label / "preferences.jsonl", [preference_from(c, given[c.id], labels[c.id]) for c in known])
            output.mkdir()
            stage = config.build(settings, ["reward"])["reward"]
            stage.run({**{name: stages[name] for name in ("data", "sft")}, "label": label}, output)
            scores = _scores(RewardModel.load(output / "model"), unseen)
        for judgment in judgments:
            if judgment.comparison_id in unseen:
                side = "held_out" if judgment.person in fold else "in_group"
                own, prompt = scores[judgment.comparison_id], unseen[judgment.comparison_id].prompt.id
                for pair in judgment.pairs:
                    if pair.p != 0.5 and own[pair.first] != own[pair.second]:
                        hit = (own[pair.first] > own[pair.second]) == (pair.p > 0.5)
                        found[side][seed].append((prompt, float(hit)))


def _scores(reward: RewardModel, comparisons: Mapping[str, Comparison]) -> dict[str, list[float]]:
    prompts = [c.prompt for c in comparisons.values() for _ in c.responses]
    scores = iter(reward.score(prompts, [r.text for c in comparisons.values() for r in c.responses]).tolist())
    return {name: [next(scores) for _ in c.responses] for name, c in comparisons.items()}


def summary(found: Mapping[str, Rows]) -> dict[str, Any]:
    """Accuracy on either side, and by how much they differ."""
    bootstrap = Bootstrap()
    tables = {
        side: [mean_table(seed, [p for p, _ in own], [hit for _, hit in own]) for seed, own in rows.items()]
        for side, rows in found.items()
    }
    estimates: dict[str, Estimate | None] = {side: bootstrap.estimate(own) for side, own in tables.items()}
    estimates["difference"] = bootstrap.difference(tables["in_group"], tables["held_out"])
    return {
        name: {"value": e.value, "low": e.low, "high": e.high, "num": e.num, "per_seed": dict(e.per_seed)}
        for name, e in estimates.items()
        if e
    }


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], help="finished runs, one a seed; else they are made"
    )
    parser.add_argument("--seeds", default="0,1,2", help="of the runs that are made (%(default)s)")
    parser.add_argument("--num-comparisons", type=int, default=2000)
    parser.add_argument("--by", default="person,group", help="how people are parted (%(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="parts, by person (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/labeler_groups"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run, and of its reward models")
    args = parser.parse_args()
    figures: dict[str, Any] = {"agreement_of_two_people": []}
    runs: dict[int, tuple[dict[str, Path], list[str]]] = {}
    for path in args.runs:
        run = read_json(path / "run.json")
        overrides = [*run["command"][2:], *args.overrides]
        runs[run["seed"]] = {name: Path(entry["path"]) for name, entry in run["stages"].items()}, overrides
    for seed in [] if args.runs else map(int, args.seeds.split(",")):
        overrides = [f"data.source.num_comparisons={args.num_comparisons}", f"seed={seed}", *LABELER, *args.overrides]
        runs[seed] = recipe_run(f"seed-{seed}", [*overrides, STEPS], args.work.absolute()), overrides
    for stages, _ in runs.values():
        figures["agreement_of_two_people"].append(
            read_json(stages["label"] / "label.json")["between_people"]["agreement"]
        )
    print(f"two people agree on {100 * statistics.fmean(figures['agreement_of_two_people']):.1f} % of pairs")
    for by in args.by.split(","):
        found: dict[str, Rows] = {side: defaultdict(list) for side in ("in_group", "held_out")}
        for seed, (stages, overrides) in runs.items():
            accuracies(stages, overrides, seed, by, args.folds, found)
        figures[by] = summary(found)
        cells = [
            f"{k} {100 * e['value']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}]" for k, e in figures[by].items()
        ]
        print(f"parted by {by}: {', '.join(cells)} %", flush=True)
    if args.output:
        settings = {
            "labeler": LABELER,
            "num_comparisons": args.num_comparisons,
            "folds": args.folds,
            "seeds": list(runs),
            "overrides": args.overrides,
        }
        write_json(args.output, {"machine": machine(), "settings": settings, **figures})


if __name__ == "__main__":
    main()
