"""TRL's SFT and reward trainers as this project uses them: pre-tokenised rows in, a trained model and its curve out.

TRL 1.16's reward trainer takes hard pairs only; `PreferenceTrainer` adds soft labels and all pairs of a prompt in one
batch element (InstructGPT section 3.2), which also saves forwards: K per prompt and not one per pair and side.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cai.errors import DataError
from cai.rl.local_trainer import Checkpoints, LocalTrainer, Measure, run_trainer, trainer_arguments
from cai.rl.losses import bradley_terry_loss
from cai.rl.settings import TrainingSettings

__all__ = ["Group", "PreferenceTrainer", "collate_groups", "short_enough", "train_reward", "train_sft"]


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
    *,
    after_epoch: Measure | None = None,
    checkpoints: Checkpoints | None = None,
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
        args = SFTConfig(**trainer_arguments(settings, folder, len(rows)), dataset_kwargs=skip)
        return _SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)

    lengths = [len(ids) for ids, _ in rows]
    return run_trainer(build, lengths, settings, "sft", after_epoch=after_epoch, checkpoints=checkpoints)


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    checkpoints: Checkpoints | None = None,
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
            args=RewardConfig(**trainer_arguments(settings, folder, len(groups))),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=lambda examples: collate_groups(examples, pad_id),
        )

    lengths = [max(map(len, group.rows)) for group in groups]
    return run_trainer(build, lengths, settings, "reward", checkpoints=checkpoints)


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


class _SFTTrainer(LocalTrainer, SFTTrainer):
    pass


class PreferenceTrainer(LocalTrainer, RewardTrainer):
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
