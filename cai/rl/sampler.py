"""Scored samples of a policy, and what they say about it under the names of PPO's curve.

Everything here is for the methods beside PPO: what they have in common is that they sample, score and measure.

Shape letters: B = responses, T = response tokens (padded).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cai.errors import DataError
from cai.models.loading import encode_dialogue, end_of_turn_id, end_of_turn_ids
from cai.records import read_records, seed_of
from cai.rewards import Part, score
from cai.rl.diagnostics import describe
from cai.rl.models import Policy, RewardModel, Row, autocast, batch_budget
from cai.rl.rollout import ROLLOUT_TOKENS, Rollout, per_token, sample_responses
from cai.rl.sampling_settings import SamplingSettings
from cai.types import Prompt

__all__ = ["Sampler", "Samples", "check_room", "in_epochs", "mean_columns", "prompt_order", "response_texts"]


@dataclass(frozen=True, slots=True)
class Samples:
    """B responses to `prompts`, with their texts, scores and, with more than one reward, the scores of each (NaN where
    one does not apply).
    """

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[str]
    scores: list[float]
    parts: Mapping[str, list[float]]

    def closed(self, end_id: int) -> list[Row]:
        """The rows, with an end-of-turn token behind those that were cut off."""
        return self.rollout.closed(end_id)


class Sampler:
    """Samples from the policies that it is given, and scores by `reward`, or by the weighted sum of `parts`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardModel,
        settings: SamplingSettings,
        parts: Sequence[Part] = (),
    ) -> None:
        end = end_of_turn_id(tokenizer)
        self.tokenizer = tokenizer
        self.reward = reward
        self.settings = settings
        self.parts = parts
        self.stop_ids = [end, *sorted(end_of_turn_ids(model, tokenizer) - {end})]

    @property
    def end_id(self) -> int:
        """The end-of-turn token of the chat template."""
        return self.stop_ids[0]

    def __call__(self, model: PreTrainedModel, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Samples:
        """A response to each prompt; `seeds[i]` alone decides the i-th. `model` stays in the mode that it was in."""
        s, training = self.settings, model.training
        with torch.no_grad(), autocast(model.device, s.dtype):
            rollout = sample_responses(
                Policy(model, temperature=s.temperature),
                [self.encode(prompt) for prompt in prompts],
                seeds=seeds,
                max_new_tokens=s.max_new_tokens,
                stop_ids=self.stop_ids,
                max_batch_tokens=ROLLOUT_TOKENS * s.max_batch_tokens,
            )
        model.train(training)
        texts = response_texts(self.tokenizer, rollout.rows, rollout.finished.tolist())
        learnt = self.reward.score_rows(rollout.closed(self.end_id), max_batch_tokens=s.max_batch_tokens).tolist()
        scored = score(self.parts, prompts, texts, learnt)
        return Samples(list(prompts), rollout, texts, scored.total, scored.parts)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, up to where the answer starts."""
        return encode_dialogue(self.tokenizer, prompt.turns)[0]

    def read_prompts(self, path: Path, model: PreTrainedModel) -> list[Prompt]:
        """The prompts of a file. DataError when there are none, or one leaves no room for a response."""
        prompts = read_records(path, Prompt)
        if not prompts:
            raise DataError(f"{path}: no prompts to learn from")
        longest = max(len(self.encode(prompt)) for prompt in prompts)
        check_room(path, longest, self.settings.max_new_tokens, model.config)
        return prompts

    def measure(self, samples: Samples, reference: Policy) -> dict[str, float | None]:
        """What PPO says about an update's responses (`cai.rl.ppo`), as far as it needs no critic: scores, sample
        estimates of KL to the reference and of entropy, lengths; then the mean of each reward and scorer's column.
        """
        max_tokens = batch_budget(self.settings.max_batch_tokens, reference.model.device)
        logp_ref = per_token(samples.rollout, reference.logp, max_tokens, self.settings.dtype)
        figures = describe(samples.rollout, torch.tensor(samples.scores), logp_ref)
        rewards = {f"reward_{name}": values for name, values in samples.parts.items()}
        columns = self.settings.scorer.score(samples.prompts, samples.texts) if self.settings.scorer else {}
        return {**figures, **mean_columns({**rewards, **columns})}


def response_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], ended: Sequence[bool]) -> list[str]:
    """The responses as text, without the token that ends those that ended."""
    ids = [row.ids[row.num_prompt : len(row.ids) - end] for row, end in zip(rows, ended, strict=True)]
    return [str(tokenizer.decode(response, skip_special_tokens=False)).strip() for response in ids]


def check_room(path: Path, longest: int, max_new_tokens: int, config: PreTrainedConfig) -> None:
    """Raise DataError when the longest prompt of `path`, in tokens, leaves no room for a response and the end-of-turn
    token that one which was cut off is closed with.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + max_new_tokens + 1 > context:
        raise DataError(
            f"{path}: the longest prompt has {longest} tokens, which with max_new_tokens {max_new_tokens} and the "
            f"end-of-turn token is more than the model's context of {context}; data.max_prompt_tokens leaves long "
            "prompts out"
        )


def mean_columns(columns: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Mean of each column over the responses it applies to; None where it applies to none."""
    means: dict[str, float | None] = {}
    for name, values in columns.items():
        applies = [value for value in values if not np.isnan(value)]
        means[name] = float(np.mean(applies)) if applies else None
    return means


def in_epochs(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Prompts without end: epoch after epoch, each in an order of its own."""
    return (prompts[index] for index in prompt_order(len(prompts), seed))


def prompt_order(num_prompts: int, seed: int, skip: int = 0) -> Iterator[int]:
    """Their indices, from number `skip` on."""
    epoch, start = divmod(skip, num_prompts)
    while True:
        order = np.random.default_rng(seed_of(seed, "prompts", epoch)).permutation(num_prompts).tolist()
        yield from order[start:]
        epoch, start = epoch + 1, 0
