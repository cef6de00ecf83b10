"""How sampling and judging grow with the number of prompts: time per 1,000 comparisons, and peak memory.

    python benchmarks/prompt_scaling.py [--sizes 250 1000 4000] [--output benchmarks/results/prompt_scaling.json]

The embedded sandbox's model answers every prompt twice and judges the pair under one principle in both orders, through
the stages of the recipe, journals included. Every size is a process of its own on one thread; seconds are processor
time. Flat columns mean that nothing in the path is worse than linear and that memory does not hold the data.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import report, table
from memory import peak

from cai.constitution import load
from cai.engines.transformers import TransformersEngine
from cai.labelers.ai import AILabeler
from cai.prompts import PromptFamily
from cai.records import write_records
from cai.sandbox.plug import SandboxData
from cai.stages.label import Label
from cai.stages.sample import Sample

CHECKPOINT = Path(__file__).resolve().parent.parent / "cai" / "sandbox" / "checkpoint"


def measured(num_prompts: int) -> dict[str, float]:
    """Run both stages in this process."""
    torch.set_num_threads(1)
    engine = functools.partial(TransformersEngine, device="cpu")
    sets = dict.fromkeys(("num_red_team", "num_demonstrations", "num_rl", "num_evaluation"), 2)
    prompts = SandboxData(seed=0, num_comparisons=num_prompts, split="dev", **sets).load().comparisons
    judge = AILabeler(
        engine=engine, model=str(CHECKPOINT), prompts=PromptFamily("sandbox"), constitution=load("sandbox"), seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        data, sft, sample, label = (Path(folder) / name for name in ("data", "sft", "sample", "label"))
        write_records(data / "comparisons.jsonl", prompts)
        sft.mkdir()
        (sft / "model").symlink_to(CHECKPOINT)
        sampling = Sample(engine=engine, seed=0, max_new_tokens=48)
        spent = {
            "sample": _seconds(lambda: sampling.run({"data": data, "sft": sft}, sample)),
            "label": _seconds(lambda: Label(labeler=judge).run({"data": data, "sample": sample}, label)),
        }
    rates = {f"{name}, s per 1,000": 1000 * seconds / num_prompts for name, seconds in spent.items()}
    return {**rates, "peak memory, MiB": peak()}


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[250, 1000, 4000], help="numbers of prompts")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)  # how the benchmark starts its own processes
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(args.case)))
        return
    figures = {}
    for size in args.sizes:
        command = [sys.executable, __file__, "--case", str(size)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        figures[f"{size:,} prompts"] = json.loads(done.stdout.splitlines()[-1])
    print(table("Sampling and judging", figures))
    report(args.output, {"sizes": args.sizes}, {"figures": figures})


if __name__ == "__main__":
    main()
