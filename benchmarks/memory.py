"""Peak memory of PPO against the size of the model and of the batch.

    python benchmarks/memory.py [--widths 128 256 512] [--batches 32 64 128] [--output benchmarks/results/memory.json]

One update of a random Llama of 4 layers with a vocabulary of 1,000, prompts of 16-24 tokens and responses of up to 48,
with the networks that the stage would load: a value network of its own, a head on the policy's trunk, and adapters of
rank 16 over one copy of the weights. Every case is a process of its own, and the figure is the most memory that this
process ever had resident, less what it had once Python, torch and the libraries were loaded. Beside it is what
`cai.rl.memory` says beforehand: the networks, gradients and Adam's moments, in float32, and the whole. The seconds are
of processor time, of one update on one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peft  # noqa: F401  # so that no case loads a library while it is measured
import ppo_speed
import torch
from measuring import numbers_tokenizer, report, table
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

from cai.models.digest import model_digest
from cai.models.loading import quiet, save_model
from cai.models.lora import add_adapter, merge, save_adapter, trained_parameters
from cai.rl.memory import budget
from cai.rl.models import ADAPTER, RewardModel, batch_budget, score_head
from cai.rl.networks import load_networks
from cai.rl.ppo import PPOTrainer
from cai.rl.settings import PPOSettings

RANK = 16
KINDS = {"own value": {}, "shared trunk": {"value": "shared"}, f"LoRA, rank {RANK}": {"lora_rank": RANK}}


def peak() -> float:
    """The most memory that this process ever had, in MiB (on Linux). What `getrusage` says is not less than what the
    process that started this one had.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def write_models(folder: Path, width: int) -> None:
    """A policy, and a reward model that was an adapter on it."""
    ppo_speed.WIDTH, ppo_speed.FEED_FORWARD = width, 3 * width
    tokenizer = numbers_tokenizer(ppo_speed.VOCABULARY, ppo_speed.END, ppo_speed.PAD)
    save_model(ppo_speed.llama(LlamaForCausalLM, 0), tokenizer, folder / "sft")
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder / "sft", num_labels=1)
    add_adapter(model, rank=RANK, alpha=2 * RANK, seed=0, head=score_head(model))
    save_adapter(model, folder / "reward" / ADAPTER, base=model_digest(folder / "sft"))
    merge(model)
    RewardModel(model, tokenizer).save(folder / "reward")


def measured(folder: str, kind: str, batch: int) -> dict[str, float]:
    """Load the networks and run one update in this process; MiB, and seconds."""
    torch.set_num_threads(1)
    ppo_speed.BATCH = batch
    settings = PPOSettings(
        seed=0, batch_size=batch, minibatch_size=batch // ppo_speed.MINIBATCHES, num_epochs=ppo_speed.EPOCHS,
        learning_rate=ppo_speed.RATE, value_learning_rate=ppo_speed.RATE, max_new_tokens=ppo_speed.NEW_TOKENS,
        device="cpu", **KINDS[kind],
    )  # fmt: skip
    before = peak()
    networks = load_networks(settings, Path(folder) / "sft", Path(folder) / "reward", longest_prompt=24, scaled=False)
    trainer = PPOTrainer(
        policy=networks.policy, reference=networks.reference, value=networks.value, reward=networks.reward.score_rows,
        reward_scale=1.0, stop_ids=[ppo_speed.END], settings=settings,
    )  # fmt: skip
    start = time.process_time()
    trainer.update(ppo_speed.prompts())
    seconds = time.process_time() - start
    model = networks.policy.model
    size = model.num_parameters()
    frozen = size - sum(parameter.numel() for parameter in trained_parameters(model))
    tokens = batch_budget(settings.max_batch_tokens, "cpu")
    told = budget(settings, model.config, size, num_frozen=frozen, longest_prompt=24, max_tokens=tokens)
    return {
        "peak": peak() - before,
        "told: networks": told.networks / 2**20,
        "told: peak": told.peak / 2**20,
        "parameters, millions": networks.reference.model.num_parameters() / 1e6,
        "seconds": seconds,
    }


def in_a_process(*case: object) -> dict[str, float]:
    """`measured` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
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
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in args.widths:
            write_models(Path(folder) / str(width), width)
        for width, batch in cases:
            for kind in KINDS:
                case = in_a_process(str(Path(folder) / str(width)), kind, batch)
                figures[f"width {width}, batch {batch}, {kind}"] = case
    print(table("Memory of one update, MiB", figures))
    report(args.output, {"widths": args.widths, "batches": args.batches, "rank": RANK}, {"mib": figures})


if __name__ == "__main__":
    main()
