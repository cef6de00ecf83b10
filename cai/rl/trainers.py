"""TRL's SFT and reward trainers as this project uses them: pre-tokenised rows in, a trained model and its curve out.

TRL 1.16's reward trainer takes hard pairs only; `PreferenceTrainer` adds soft labels and all pairs of a prompt in one
batch element (InstructGPT section 3.2), which also saves forwards: K per prompt and not one per pair and side.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cai.errors import DataError
from cai.records import seed_of
from cai.rl.local_trainer import Checkpoints, LocalTrainer, Measure, run_trainer, trainer_arguments
from cai.rl.losses import bradley_terry_loss
from cai.rl.models import autocast, score_head
from cai.rl.reward_scores import Head, pool_rewards, snippet_rewards
from cai.rl.settings import TrainingSettings
from cai.rl.snippets import Snippets

__all__ = ["Group", "PreferenceTrainer", "collate_groups", "in_snippets", "short_enough", "train_reward", "train_sft"]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with K responses as K rows of token ids, and its labels: `p[i]` is the probability that row
    `first[i]` is preferred to row `second[i]`, `weight[i]` (of nothing: 1) how much that counts and `margin[i]`
    (of nothing: 0) how far ahead the preferred one should be. Responses begin at token `starts` of their rows, which
    only a head that reads all their tokens asks for. With `spans`, pair i is one of snippets: tokens `spans[i][0]` on
    of its first row against tokens `spans[i][1]` on of its second, `spans[i][2]` of each.
    """

    rows: list[list[int]]
    first: list[int]
    second: list[int]
    p: list[float]
    weight: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    spans: list[list[int]] = field(default_factory=list)


_COLUMNS = tuple(column.name for column in fields(Group))


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[list[int], int]],
    settings: TrainingSettings,
    *,
    after_epoch: Measure | None = None,
    checkpoints: Checkpoints | None = None,
    at_step: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Train `model` in place on rows (token ids, number of prompt tokens), with the loss on the response tokens alone
    (token mean over the batch). Returns the curve, with a row of what `after_epoch` measured for each epoch; `at_step`
    is told of every step (`run_trainer`).
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
    return run_trainer(
        build, lengths, settings, "sft", after_epoch=after_epoch, checkpoints=checkpoints, at_step=at_step
    )


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    head: Head = "last",
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Train a sequence classification model of one label in place, on all labelled pairs of each prompt; `head` says
    which of its outputs make a reward. Batch sizes count prompts. `model.config.pad_token_id` must differ from the
    token that ends a response. Returns the curve.
    """
    data = Dataset.from_dict({column: [getattr(group, column) for group in groups] for column in _COLUMNS})
    pad_id: int = model.config.get_text_config().pad_token_id
    # The trainers copy the tokenizer's pad token into the model's configuration, so the two have to agree.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)

    def build(folder: str) -> RewardTrainer:
        trainer = PreferenceTrainer(
            model=model,
            args=RewardConfig(**trainer_arguments(settings, folder, len(groups))),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=lambda examples: collate_groups(examples, pad_id),
        )
        trainer.head = head
        return trainer

    lengths = [max(map(len, group.rows)) for group in groups]
    return run_trainer(build, lengths, settings, "reward", checkpoints=checkpoints)


def in_snippets(group: Group, snippets: Snippets, seed: int) -> Group:
    """`group` with pairs of snippets of its responses in place of the pairs of responses, each with their label."""
    sizes = [len(row) - start for row, start in zip(group.rows, group.starts, strict=True)]
    pairs: list[int] = []
    spans: list[list[int]] = []
    for number, (i, j) in enumerate(zip(group.first, group.second, strict=True)):
        for one, other, size in snippets.draw(sizes[i], sizes[j], seed=seed_of(seed, number)):
            pairs.append(number)
            spans.append([group.starts[i] + one, group.starts[j] + other, size])
    labels = {name: getattr(group, name) for name in ("first", "second", "p", "weight", "margin")}
    repeated = {name: [values[number] for number in pairs] if values else [] for name, values in labels.items()}
    return replace(group, **repeated, spans=spans)


def collate_groups(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Groups as one batch: `input_ids`, `attention_mask`, `response_mask` (N, L) over all responses; `first`, `second`,
    `p`, `weight`, `margin` over all pairs (P), indices into N; `spans` (P, 3) where the pairs are of snippets.
    The weights of a group's pairs sum to 1 where its labels have weight 1: they are 1 / C(K, 2) when all are labelled.
    """
    rows = [row for example in examples for row in example["rows"]]
    starts = [start for example in examples for start in example.get("starts") or [0] * len(example["rows"])]
    length = max(map(len, rows))
    labels: dict[str, list[float]] = {"first": [], "second": [], "p": [], "weight": [], "margin": []}
    offset = 0
    for example in examples:
        num_pairs = len(example["p"])
        labels["first"] += [offset + i for i in example["first"]]
        labels["second"] += [offset + i for i in example["second"]]
        labels["p"] += example["p"]
        labels["weight"] += [weight / num_pairs for weight in example.get("weight") or [1.0] * num_pairs]
        labels["margin"] += example.get("margin") or [0.0] * num_pairs
        offset += len(example["rows"])
    spans = [span for example in examples for span in example.get("spans") or []]
    columns, sizes = torch.arange(length), torch.tensor([len(row) for row in rows])
    real = columns < sizes[:, None]
    return {
        "input_ids": torch.tensor([row + [pad_id] * (length - len(row)) for row in rows]),
        "attention_mask": real.long(),
        "response_mask": (real & (columns >= torch.tensor(starts)[:, None])).long(),
        "first": torch.tensor(labels["first"]),
        "second": torch.tensor(labels["second"]),
        **{name: torch.tensor(labels[name], dtype=torch.float32) for name in ("p", "weight", "margin")},
        **({"spans": torch.tensor(spans)} if spans else {}),
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

    head: Head = "last"
    loss_is_scaled_for_ga = True  # a microbatch's loss is its share of the step's

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset  # tokenised already; TRL's preparation wants chosen and rejected

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(_COLUMNS)  # others would be dropped from the batches

    def get_batch_samples(self, iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The microbatches of a step, and the weight of all their labels."""
        batches, _ = super().get_batch_samples(iterator, num_batches, device)
        return batches, torch.stack([batch["weight"].sum() for batch in batches]).sum().to(device) if batches else None

    def compute_loss(
        self,
        model: Callable[..., Any],
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Bradley-Terry loss of one microbatch (`cai.rl.losses.bradley_terry_loss`), of responses or of snippets,
        as its share of that of the step.
        """
        first, second, spans = inputs["first"], inputs["second"], inputs.get("spans")
        if spans is None:
            rewards = self._rewards(model, inputs)
        else:
            rows, starts, sizes = torch.cat([first, second]), spans[:, :2].T.flatten(), spans[:, 2].repeat(2)
            rewards = snippet_rewards(self._outputs(inputs), rows, starts, sizes, self.head)
            first, second = torch.arange(2 * len(first), device=first.device).chunk(2)
        labels = inputs["p"], inputs["weight"], inputs["margin"]
        loss = bradley_terry_loss(rewards, first, second, *labels, total_weight=num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def _rewards(self, model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
        """One of every response, (N)."""
        if self.head == "last":
            # Hugging Face reads the score at the rightmost id that is not `config.pad_token_id`: the end-of-turn token.
            rewards: Tensor = model(**_model_inputs(inputs)).logits.squeeze(-1)
            return rewards
        return pool_rewards(self._outputs(inputs), inputs["response_mask"], self.head)

    def _outputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Those of the head at every token, (N, L)."""
        with autocast(inputs["input_ids"].device, "bfloat16" if self.args.bf16 else "float32"):
            network = cast(PreTrainedModel, self.model)
            hidden = cast(Any, network.base_model)(**_model_inputs(inputs)).last_hidden_state
            return cast(Tensor, score_head(network)(hidden).squeeze(-1))


def _model_inputs(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
