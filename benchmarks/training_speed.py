"""How fast reward and SFT training are: this project's trainers against TRL's own, on the same rows.

    python benchmarks/training_speed.py [--prompts 96] [--repeats 4] [--output benchmarks/results/training_speed.json]

A random Llama of the sandbox's size (d = 128, 4 layers, a vocabulary of 450); prompts of 16-24 tokens, 4 responses to
each of 10-48. Reward training takes all 6 pairs of a prompt: as one group here (4 rows through the network), as 6 rows
of chosen and rejected in TRL's RewardTrainer (12). SFT takes one response to each prompt. Both train one epoch with the
same number of steps; TRL's defaults of bf16 and activation checkpointing, which slow a CPU down, are off. Contenders
take turns on one thread and by processor time; building the trainers is in the time of both.
"""

import argparse
import contextlib
import io
import itertools
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from engine_speed import random_model
from measuring import gains, in_turns, numbers_tokenizer, report, summary, table
from transformers import LlamaForSequenceClassification, PreTrainedModel, PrinterCallback
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cai.models.loading import quiet
from cai.rl.settings import TrainingSettings
from cai.rl.trainers import Group, train_reward, train_sft

VOCABULARY, END, PAD = 450, 0, 1
RESPONSES = 4
BATCH = 8  # prompts of a step
PAIRS = list(itertools.combinations(range(RESPONSES), 2))
TOKENIZER = numbers_tokenizer(VOCABULARY, END, PAD)


def groups(num_prompts: int) -> list[Group]:
    """Prompts with their responses; the first of a pair is preferred."""
    rng = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(2, VOCABULARY) for _ in range(rng.randint(low, high))]

    made = []
    for _ in range(num_prompts):
        prompt = tokens(16, 24)
        rows = [[*prompt, *tokens(10, 47), END] for _ in range(RESPONSES)]
        made.append(Group(rows, [i for i, _ in PAIRS], [j for _, j in PAIRS], [1.0] * len(PAIRS)))
    return made


def scalar_model() -> PreTrainedModel:
    """The trunk of the random model with a scalar head."""
    config = random_model().config
    config.num_labels, config.pad_token_id = 1, PAD
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


def arguments(folder: str, rows: int) -> dict[str, Any]:
    """Arguments of TRL's trainers that say the same as `settings`."""
    return {
        "output_dir": folder, "per_device_train_batch_size": rows, "num_train_epochs": 1, "learning_rate": 1e-4,
        "max_length": None, "bf16": False, "activation_checkpointing": False, "use_cpu": True, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False, "logging_steps": 50,
    }  # fmt: skip


def settings(rows: int) -> TrainingSettings:
    """This project's."""
    return TrainingSettings(seed=0, batch_size=rows, learning_rate=1e-4, warmup_share=0.0, device="cpu")


def run_stock(kind: Any, config: Any, model: PreTrainedModel, data: Dataset, rows: int) -> None:
    """One epoch of a trainer of TRL's."""
    with tempfile.TemporaryDirectory() as folder, quiet(), contextlib.redirect_stdout(io.StringIO()):
        args = config(**arguments(folder, rows))
        trainer = kind(model=model, args=args, train_dataset=data, processing_class=TOKENIZER)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def reward_speed(num_prompts: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of reward training by either."""
    given, ours, theirs = groups(num_prompts), scalar_model(), scalar_model()
    pairs = [
        {"chosen_ids": group.rows[i], "rejected_ids": group.rows[j]}
        for group in given
        for i, j in zip(group.first, group.second, strict=True)
    ]
    data = Dataset.from_list(pairs)
    return in_turns(
        {
            "TRL, exploded pairs": lambda: run_stock(RewardTrainer, RewardConfig, theirs, data, BATCH * len(PAIRS)),
            "cai, groups": lambda: train_reward(ours, TOKENIZER, given, settings(BATCH)),
        },
        repeats,
    )


def sft_speed(num_prompts: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of SFT by either, on one response to each of 4 times as many prompts."""
    ours, theirs = random_model(), random_model()
    rows = [row for group in groups(num_prompts) for row in group.rows]
    data = Dataset.from_list([{"input_ids": ids, "completion_mask": [0] * 16 + [1] * (len(ids) - 16)} for ids in rows])
    batch = BATCH * RESPONSES
    return in_turns(
        {
            "TRL": lambda: run_stock(SFTTrainer, SFTConfig, theirs, data, batch),
            "cai": lambda: train_sft(ours, TOKENIZER, [(ids, 16) for ids in rows], settings(batch)),
        },
        repeats,
    )


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96, help="prompts, each with 4 responses")
    parser.add_argument("--repeats", type=int, default=4, help="turns of each contender")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name, measure, base, rows in (
        ("reward", reward_speed, "TRL, exploded pairs", args.prompts),
        ("sft", sft_speed, "TRL", args.prompts * RESPONSES),
    ):
        seconds = measure(args.prompts, args.repeats)
        rates = {contender: summary(times, rows) for contender, times in seconds.items()}
        gain = gains(rates, base)
        print(table(f"{name}: {'prompts' if name == 'reward' else 'rows'} per second of processor time", rates))
        print(table(f"{name}: times as fast", gain))
        figures[name] = {"rows_per_s": rates, "gain": gain}
    report(args.output, {"prompts": args.prompts, "repeats": args.repeats, "batch": BATCH}, figures)


if __name__ == "__main__":
    main()
