"""All comparisons of a prompt as one batch element, or the same comparisons shuffled: which reward model overfits less?

    python benchmarks/kwise_overfit.py [--seeds 0,1,2] [--output benchmarks/results/kwise_overfit.json]

InstructGPT (section 3.5) says that comparisons shuffled into one dataset overfit within one pass, because a response
is met K - 1 times, and that all C(K, 2) of a prompt as one batch element do not. Here simulated people, who agree at
72.6 %, rank K of six responses of SL-CAI, and three reward models learn from the same pairs as often, from one start:

- grouped: a step takes `--batch-size` prompts with all their pairs (each response is read once);
- shuffled: a step takes as many pairs as those prompts have, wherever they come from; as many steps;
- small: a step takes `--batch-size` pairs; C(K, 2) times as many steps, which is what shuffling with the same batch
  size comes to.

Loss and accuracy are over all pairs of the prompts that were trained on, and of held-out prompts. Each row of the table
is a training of its own.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import report
from recipe_runs import recipe_run

from cai.datasets.splits import held_out
from cai.records import read_records
from cai.rl.calibration import pair_metrics
from cai.rl.models import RewardModel, Row
from cai.rl.settings import TrainingSettings
from cai.rl.trainers import Group, train_reward
from cai.types import Preference

STEPS = "steps=[data,revise,sft,sample,label]"
# Passes over the pairs, by arm: a pass of groups costs K forwards a prompt and not K (K - 1), so it may have more.
PASSES = {"grouped": (1, 3, 9), "shuffled": (1, 3), "small": (1, 3)}


def groups_of(reward: RewardModel, preferences: Sequence[Preference], k: int) -> list[Group]:
    """The first `k` responses of every preference with the labels among them."""
    found = []
    for preference in preferences:
        rows = reward.encode([preference.prompt] * k, preference.responses[:k])
        pairs = [pair for pair in preference.pairs if max(pair.first, pair.second) < k]
        labels = {name: [getattr(pair, name) for pair in pairs] for name in ("first", "second", "p")}
        found.append(Group([row.ids for row in rows], **labels, starts=[row.num_prompt for row in rows]))
    return found


def exploded(groups: Sequence[Group]) -> list[Group]:
    """Every pair as a group of its own."""
    return [
        Group([group.rows[i], group.rows[j]], [0], [1], [p], starts=[group.starts[i], group.starts[j]])
        for group in groups
        for i, j, p in zip(group.first, group.second, group.p, strict=True)
    ]


def measure(reward: RewardModel, groups: Sequence[Group]) -> dict[str, float]:
    """Log-loss and accuracy over all pairs."""
    rows = [Row(ids, start) for group in groups for ids, start in zip(group.rows, group.starts, strict=True)]
    scores = iter(reward.raw_scores(rows)[0].tolist())
    delta, target = [], []
    for group in groups:
        own = [next(scores) for _ in group.rows]
        delta += [own[i] - own[j] for i, j in zip(group.first, group.second, strict=True)]
        target += group.p
    metrics = pair_metrics(np.array(delta), np.array(target))
    return {name: metrics[name] for name in ("log_loss", "accuracy")}


def trained(
    sft: Path, sides: dict[str, list[Group]], arm: str, num_epochs: int, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Figures of one training: `sides` are the groups to train on and those held out."""
    reward = RewardModel.from_language_model(sft / "model", seed=seed)
    batch = args.batch_size * (len(sides["train"][0].p) if arm == "shuffled" else 1)
    settings = TrainingSettings(
        seed=seed, num_epochs=num_epochs, batch_size=batch, learning_rate=args.learning_rate, device="cpu"
    )
    rows = sides["train"] if arm == "grouped" else exploded(sides["train"])
    train_reward(reward.model, reward.tokenizer, rows, settings)
    return {name: measure(reward, groups) for name, groups in sides.items()}


def figures(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every K, number of epochs and arm."""
    overrides = [
        *("experiment=rlhf", STEPS, f"seed={seed}", "sample.num_responses=6", "data.source.split=dev"),
        *(f"data.source.num_comparisons={args.num_comparisons}", *args.overrides),
    ]
    stages = recipe_run(f"seed-{seed}", overrides, args.work.absolute())
    preferences = read_records(stages["label"] / "preferences.jsonl", Preference)
    out = held_out([preference.prompt for preference in preferences], args.held_out_share)
    reward = RewardModel.from_language_model(stages["sft"] / "model", seed=seed)
    found = []
    for k in args.sizes:
        groups = groups_of(reward, preferences, k)
        sides = {"train": [g for g, held in zip(groups, out, strict=True) if not held]}
        sides["held_out"] = [g for g, held in zip(groups, out, strict=True) if held]
        for arm, passes in PASSES.items():
            for num_epochs in passes:
                row = trained(stages["sft"], sides, arm, num_epochs, seed, args)
                found.append({"seed": seed, "k": k, "arm": arm, "passes": num_epochs, **row})
                print(found[-1], flush=True)
    return found


def cell(rows: Sequence[dict[str, Any]], side: str, name: str) -> str:
    """Mean over seeds, with the range."""
    values = [row[side][name] for row in rows]
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"type": lambda text: [int(number) for number in text.split(",")]}
    parser.add_argument("--seeds", default=[0, 1, 2], help="comma-separated", **numbers)
    parser.add_argument("--sizes", default=[4, 5, 6], help="responses to a prompt, at most 6 (4,5,6)", **numbers)
    parser.add_argument("--num-comparisons", type=int, default=400, help="prompts (%(default)s)")
    parser.add_argument("--held-out-share", type=float, default=0.5, help="of the prompts (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/kwise_overfit"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    rows = [row for seed in args.seeds for row in figures(seed, args)]
    names = ("log-loss, trained on", "log-loss, held out", "accuracy, trained on", "accuracy, held out")
    print(f"\n| K | pairs | passes | {' | '.join(names)} |\n|{'---|' * 7}")
    for k in args.sizes:
        for arm, passes in PASSES.items():
            for num_epochs in passes:
                own = [row for row in rows if (row["k"], row["arm"], row["passes"]) == (k, arm, num_epochs)]
                cells = [cell(own, side, name) for name in ("log_loss", "accuracy") for side in ("train", "held_out")]
                print(f"| {k} | {arm} | {num_epochs} | {' | '.join(cells)} |")
    settings = {name: getattr(args, name) for name in ("num_comparisons", "held_out_share", "batch_size")}
    report(args.output, settings | {"learning_rate": args.learning_rate, "seeds": args.seeds}, {"rows": rows})


if __name__ == "__main__":
    main()
