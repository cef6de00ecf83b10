"""TRL's SFT and reward trainers as this project uses them: pre-tokenised rows in, a trained model and its curve out.

TRL 1.16's reward trainer takes hard pairs only; `PreferenceTrainer` adds soft labels and all pairs of a prompt in one
batch element (InstructGPT section 3.2), which also saves forwards: K per prompt and not one per pair and side.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cai.errors import DataError
from cai.models.loading import pick_device, quiet
from cai.progress import progress
from cai.records import seed_of
from cai.rl.losses import bradley_terry_loss
from cai.rl.settings import TrainingSettings

__all__ = ["Group", "LengthSampler", "PreferenceTrainer", "collate_groups", "short_enough", "train_reward", "train_sft"]

# Batches of similar length are made within pools of this many batches, so that padding is low (a few percent) while
# what is in a batch still changes from epoch to epoch.
_POOL_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with K responses as K rows of token ids, and its labels: `p[i]` is the probability that row
    `first[i]` is preferred to row `second[i]`.
    """

    rows: list[list[int]]
    first: list[int]
    second: list[int]
    p: list[float]


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[list[int], int]],
    settings: TrainingSettings,
    after_epoch: Callable[[], dict[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place on rows (token ids, number of prompt tokens), with the loss on the response tokens alone
    (token mean over the batch). Returns the curve, with a row of what `after_epoch` measured for each epoch.
    """
    data = Dataset.from_dict(
        {
            "input_ids": [ids for ids, _ in rows],
            "labels": [[-100] * start + ids[start:] for ids, start in rows],
        }
    )

    def build(folder: str) -> SFTTrainer:
        # The rows carry labels already; the rest of TRL's preparation (templates, truncation) is done or not wanted.
        skip = {"skip_prepare_dataset": True}
        args = SFTConfig(**_arguments(settings, folder, len(rows)), dataset_kwargs=skip)
        return _SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)

    return _train(build, [len(ids) for ids, _ in rows], settings, "sft", after_epoch)


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    settings: TrainingSettings,
) -> list[dict[str, float]]:
    """Train a sequence classification model of one label in place, on all labelled pairs of each prompt. Batch sizes
    count prompts. `model.config.pad_token_id` must differ from the token that ends a response. Returns the curve.
    """
    columns = ("rows", "first", "second", "p")
    data = Dataset.from_dict({column: [getattr(group, column) for group in groups] for column in columns})
    pad_id: int = model.config.get_text_config().pad_token_id
    # The trainers copy the tokenizer's pad token into the model's configuration, so the two have to agree.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)

    def build(folder: str) -> RewardTrainer:
        return PreferenceTrainer(
            model=model,
            args=RewardConfig(**_arguments(settings, folder, len(groups))),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=lambda examples: collate_groups(examples, pad_id),
        )

    return _train(build, [max(map(len, group.rows)) for group in groups], settings, "reward")


def collate_groups(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Groups as one batch: `input_ids`, `attention_mask` (N, L) over all responses; `first`, `second`, `p`, `weight`
    over all pairs (P), indices into N; the weights of a group's pairs sum to 1: 1 / C(K, 2) when all are labelled.
    """
    rows = [row for example in examples for row in example["rows"]]
    length = max(map(len, rows))
    first, second, p, weight = [], [], [], []
    offset = 0
    for example in examples:
        first += [offset + i for i in example["first"]]
        second += [offset + i for i in example["second"]]
        p += example["p"]
        weight += [1 / len(example["p"])] * len(example["p"])
        offset += len(example["rows"])
    return {
        "input_ids": torch.tensor([row + [pad_id] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "first": torch.tensor(first),
        "second": torch.tensor(second),
        "p": torch.tensor(p, dtype=torch.float32),
        "weight": torch.tensor(weight, dtype=torch.float32),
    }


def short_enough(lengths: Sequence[int], config: PreTrainedConfig, settings: TrainingSettings, where: str) -> list[int]:
    """Indices of the rows that fit `max_tokens` and the model's own context. Raises DataError when one does not and
    `drop_too_long` is off: a row cut short would teach wrong endings, one left out in silence would be missed.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or settings.max_tokens
    limit = min(settings.max_tokens, context)
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    if len(kept) == len(lengths) or (settings.drop_too_long and kept):
        return kept
    raise DataError(
        f"{where}: {len(lengths) - len(kept)} of {len(lengths)} rows are longer than {limit} tokens (the smaller of "
        f"max_tokens {settings.max_tokens} and the model's context {context}), the longest {max(lengths)}; raise "
        "max_tokens, or set drop_too_long=true to leave them out"
    )


class _LocalTrainer:
    """Mixed into TRL's trainers: batches of similar length in random order, no message to a telemetry server, and one
    GPU: where there are several, Hugging Face would spread a batch over all of them and make it as many times larger.
    """

    sampler: "LengthSampler"

    def __init__(self, *, args: Any, **settings: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # reading it first has it counted; it would be counted later, over this
        super().__init__(args=args, **settings)  # type: ignore[call-arg]  # of TRL

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        return self.sampler

    def _send_telemetry(self) -> None:
        return None


class _SFTTrainer(_LocalTrainer, SFTTrainer):
    pass


class PreferenceTrainer(_LocalTrainer, RewardTrainer):
    """TRL's RewardTrainer with soft labels over groups of responses, from `collate_groups` batches."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset  # tokenised already; TRL's preparation wants chosen and rejected

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["rows", "first", "second", "p"]  # others would be dropped from the batches

    def compute_loss(
        self,
        model: Callable[..., Any],
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> Any:
        """The Bradley-Terry loss of one batch (`cai.rl.losses.bradley_terry_loss`)."""
        # Hugging Face reads the score at the rightmost id that is not `config.pad_token_id`: the end-of-turn token.
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        labels = (inputs[key] for key in ("first", "second", "p", "weight"))
        loss = bradley_terry_loss(output.logits.squeeze(-1), *labels)
        return (loss, output) if return_outputs else loss


class LengthSampler(Sampler[int]):
    """Indices such that consecutive `batch_size` of them have similar lengths; batches come in random order.

    Hugging Face's own grouping sorts whole pools from long to short, so that an epoch ends on its shortest rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        self.epoch += 1
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = _POOL_BATCHES * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), pool):
            rows = sorted(shuffled[start : start + pool], key=lambda i: self.lengths[i])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        # A batch that is not full must come last: the trainer cuts the stream of indices every `batch_size`.
        ragged = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(full), generator=generator).tolist()
        for batch in [*(full[i] for i in order), *ragged]:
            yield from batch


class _Hooks(TrainerCallback):
    def __init__(self, advance: Callable[[], None], after_epoch: Callable[[], dict[str, float]] | None) -> None:
        self.advance = advance
        self.after_epoch = after_epoch
        self.measured: list[dict[str, float]] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.advance()

    def on_epoch_end(self, args: object, state: Any, control: object, **_: object) -> None:
        if self.after_epoch is not None:
            self.measured.append({"step": state.global_step, "epoch": round(state.epoch, 6), **self.after_epoch()})


def _train(
    build: Callable[[str], Any],
    lengths: Sequence[int],
    settings: TrainingSettings,
    label: str,
    after_epoch: Callable[[], dict[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Run the trainer that `build` makes in a folder of its own, which is thrown away with all that is in it."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = build(folder)
        trainer.sampler = LengthSampler(lengths, settings.batch_size, settings.seed)
        trainer.remove_callback(PrinterCallback)
        steps = -(-len(lengths) // settings.batch_size) * settings.num_epochs
        with progress(label, total=steps, unit="steps") as bar:
            hooks = _Hooks(bar.advance, after_epoch)
            trainer.add_callback(hooks)
            trainer.train()
        kept = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")
        rows = [{key: entry[key] for key in kept if key in entry} for entry in trainer.state.log_history]
    # the last entry of the history is clocks
    return sorted([row for row in rows if "loss" in row] + hooks.measured, key=lambda row: row["step"])


_SCHEDULES: dict[str, str] = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def _arguments(settings: TrainingSettings, folder: str, num_rows: int) -> dict[str, Any]:
    """Arguments of both configurations. TRL's own defaults, bf16 and activation checkpointing, are three times slower
    on a CPU; nothing is saved, reported or logged but some 50 points of the curve.
    """
    steps = -(-num_rows // settings.batch_size) * settings.num_epochs
    rows = settings.microbatch_size or settings.batch_size
    return {
        "output_dir": folder,
        "seed": settings.seed % 2**32,  # numpy's limit
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": settings.batch_size // rows,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _SCHEDULES[settings.schedule],
        "warmup_steps": round(settings.warmup_share * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,
        "bf16": settings.dtype == "bfloat16",
        "activation_checkpointing": False,
        "use_cpu": pick_device(settings.device) == "cpu",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": max(1, steps // 50),
    }
