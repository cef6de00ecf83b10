"""Over-optimisation: PPO without a KL penalty against a reward model made from few labels.

    python benchmarks/over_optimisation.py [--seeds 0,1,2] [--output benchmarks/results/over_optimisation.json]

The proxy (the reward model's score) goes up as long as one likes; the gold score, which simulated people valued when
they gave the labels, goes up and then down (Gao et al. 2023). The table has both along sqrt(KL), in eighths of the run,
with the spread over seeds; `--beta 0.08` is the same run held back.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from recipe_runs import recipe_run

from cai.records import read_rows, write_json

STEPS = "steps=[data,revise,sft,sample,label,reward,rl]"


def curve(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one run."""
    overrides = [
        *("experiment=rlhf", STEPS, f"seed={seed}", f"data.source.num_comparisons={args.num_comparisons}"),
        *(f"rl.beta={args.beta}", f"rl.num_updates={args.num_updates}", *args.overrides),
    ]
    return read_rows(recipe_run(f"beta-{args.beta}-seed-{seed}", overrides, args.work.absolute())["rl"] / "curve.jsonl")


def in_parts(rows: list[dict[str, Any]], num_parts: int) -> list[dict[str, float]]:
    """Means of stretches of the curve; the score in units of its spread at the start."""
    unit = statistics.mean(row["score_std"] for row in rows[:4])
    size = len(rows) // num_parts
    parts = []
    for start in range(0, size * num_parts, size):
        own = rows[start : start + size]
        mean = {name: statistics.mean(row[name] for row in own) for name in ("kl", "gold", "score_mean", "garbled")}
        parts.append({**mean, "root_kl": max(mean["kl"], 0.0) ** 0.5, "proxy": mean["score_mean"] / unit})
    return parts


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL penalty (%(default)s)")
    parser.add_argument("--num-comparisons", type=int, default=100, help="labels of the reward model (%(default)s)")
    parser.add_argument("--num-updates", type=int, default=96, help="of PPO (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/over_optimisation"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    found = {seed: in_parts(curve(seed, args), 8) for seed in seeds}
    print("\n| part of the run | sqrt KL | proxy | gold, by seed |\n|---|---|---|---|")
    for part in range(8):
        rows = [found[seed][part] for seed in seeds]
        root, proxy = (statistics.mean(row[name] for row in rows) for name in ("root_kl", "proxy"))
        gold = ", ".join(f"{row['gold']:+.2f}" for row in rows)
        print(f"| {part + 1} of 8 | {root:.2f} | {proxy:+.2f} | {gold} |")
    if args.output:
        settings = {"beta": args.beta, "num_comparisons": args.num_comparisons, "num_updates": args.num_updates}
        write_json(args.output, {"settings": settings, "parts": {str(seed): rows for seed, rows in found.items()}})


if __name__ == "__main__":
    main()
