"""Peak memory of PPO against the size of the model and of the batch.

    python benchmarks/memory.py [--widths 128 256 512] [--batches 32 64 128] [--output benchmarks/results/memory.json]

One update of a random Llama of 4 layers with a vocabulary of 1,000, prompts of 16-24 tokens and responses of up to 48,
for a value network of its own and for a head on the policy's trunk. Every case is a process of its own, and the figure
is the most memory that this process ever had resident (`getrusage`), less what it had once Python, torch and the
libraries were loaded. The weights of the networks, gradients and Adam's moments, in float32, are told beside it: what
is more is activations, logits and caches.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import ppo_speed
import torch
from measuring import report, table


def peak() -> float:
    """The most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(width: int, batch: int, shared: bool) -> dict[str, float]:
    """Run one update in this process; MiB."""
    torch.set_num_threads(1)
    ppo_speed.WIDTH, ppo_speed.FEED_FORWARD, ppo_speed.BATCH = width, 3 * width, batch
    before = peak()
    trainer = ppo_speed.ours(shared)
    trainer.update(ppo_speed.prompts())
    size = trainer.policy.model.num_parameters() * 4 / 2**20
    networks = 3 if shared else 4  # policy, reference, reward, and a value that is not shared
    trained = 1 if shared else 2
    states = size * (networks + 3 * trained)  # a gradient and two moments of each trained network
    return {"peak": peak() - before, "weights and optimiser": states, "parameters, millions": size / 4 * 1.048576}


def in_a_process(width: int, batch: int, shared: bool) -> dict[str, float]:
    """`measured` in a process of its own."""
    case = json.dumps([width, batch, shared])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[128, 256, 512], help="hidden sizes, at --batches[0]")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 128, 256], help="rows, at --widths[0]")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # how the benchmark starts its own processes
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(*json.loads(args.case))))
        return
    cases = [(width, args.batches[0]) for width in args.widths] + [(args.widths[0], b) for b in args.batches[1:]]
    figures = {
        f"width {width}, batch {batch}, {'shared trunk' if shared else 'own value'}": in_a_process(width, batch, shared)
        for width, batch in cases
        for shared in (False, True)
    }
    print(table("Peak memory of one update, MiB", figures))
    report(args.output, {"widths": args.widths, "batches": args.batches}, {"mib": figures})


if __name__ == "__main__":
    main()
