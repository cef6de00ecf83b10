"""What PPO-ptx buys: gold score against what is left of pre-training, over its coefficient (InstructGPT's gamma).

    python benchmarks/ptx_tax.py [--seeds 0,1,2] [--gammas 0,1,10,27.8] [--output benchmarks/results/ptx_tax.json]

Every run takes PPO's own steps and in each of them a batch of the corpus that the embedded model was pre-trained on;
perplexity is on documents of that corpus that nothing was trained on (`benchmarks/perplexity.py`), gold is the mean
over held-out prompts. The tax is the perplexity above that of the SL-CAI model that PPO starts from.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from perplexity import perplexity
from recipe_runs import recipe_run

from cai.evaluation_sets.perplexity import HELD_OUT
from cai.models.loading import load_causal_lm
from cai.models.perplexity import losses
from cai.records import read_json, write_json
from cai.sandbox.source import EncodedDocument, SandboxSource

STEPS = "steps=[data,revise,sft,sample,label,reward,rl,evaluate_policy]"
COLUMNS = ("gold", "harmful_compliance", "helpful")


def figures(seed: int, gamma: float, documents: list[EncodedDocument], args: argparse.Namespace) -> dict[str, Any]:
    """One run's."""
    ptx = ["rl.ptx={_target_: cai.sandbox.source.SandboxSource}", f"rl.ptx_coefficient={gamma}"]
    overrides = ["experiment=rlaif", STEPS, f"seed={seed}", *ptx, *args.overrides]
    stages = recipe_run(f"gamma-{gamma}-seed-{seed}", overrides, args.work.absolute())
    means = read_json(stages["evaluate_policy"] / "summary.json")["all"]
    found: dict[str, Any] = {name: means[name]["mean"] for name in COLUMNS}
    for name, stage in (("perplexity", "rl"), ("perplexity_sl_cai", "sft")):
        sums = np.array(losses(load_causal_lm(stages[stage] / "model"), documents))
        found[name] = perplexity(sums)["perplexity"]
    return found


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--gammas", default="0,1,10,27.8", help="coefficients, comma-separated (%(default)s)")
    parser.add_argument("--num-tokens", type=int, default=50_000, help="size of the held-out text (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/ptx_tax"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    documents = sorted(SandboxSource().documents(HELD_OUT, 1.0, args.num_tokens), key=lambda d: len(d.ids))
    gammas = [float(gamma) for gamma in args.gammas.split(",")]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    found = {gamma: [figures(seed, gamma, documents, args) for seed in seeds] for gamma in gammas}
    names = (*COLUMNS, "perplexity", "perplexity_sl_cai")
    print(f"\n| gamma | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for gamma, rows in found.items():
        cells = []
        for name in names:
            values = [row[name] for row in rows]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {gamma:g} | {' | '.join(cells)} |")
    if args.output:
        write_json(args.output, {"seeds": seeds, "figures": {f"{gamma:g}": rows for gamma, rows in found.items()}})


if __name__ == "__main__":
    main()
