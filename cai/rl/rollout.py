"""Sampling the responses of one PPO update, and what becomes of them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cai.models.decoding import Decoded, sample
from cai.rl.models import Packed, Policy, Row, autocast, pack, plan_batches

__all__ = ["ROLLOUT_TOKENS", "Rollout", "Update", "per_token", "sample_responses"]


# Sampling keeps no activations for a backward pass, so its batches may be this many times larger.
ROLLOUT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Rollout:
    """B sampled responses, with T the length of the longest.

    `mask` (B, T) float is 1 for response tokens, the end-of-turn token among them; `logp` (B, T) are their
    log-probabilities at the sampling temperature, 0 on padding; `finished` (B) bool tells whether the end-of-turn token
    was sampled before `max_new_tokens` were spent.
    """

    rows: list[Row]
    mask: Tensor
    logp: Tensor
    finished: Tensor

    def closed(self, end_id: int) -> list[Row]:
        """The rows, with the end-of-turn token `end_id` behind those that were cut off."""
        ends = ([] if done else [end_id] for done in self.finished.tolist())
        return [Row(row.ids + end, row.num_prompt) for row, end in zip(self.rows, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Update:
    """What one update saw and learnt. `scores` (B) are the reward's own, before scaling and penalty; the rest is
    (B, T) and 0 on padding: reference log-probs, values at rollout, whitened advantages, and returns.
    """

    rollout: Rollout
    scores: Tensor
    logp_ref: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    objective: Tensor
    diagnostics: dict[str, float]


def sample_responses(
    policy: Policy,
    prompts: Sequence[list[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int],
    max_batch_tokens: int,
) -> Rollout:
    """Sample a response to each prompt (token ids) from the whole distribution at the policy's temperature.

    `seeds[i]` alone decides row i's randomness. `max_batch_tokens` bounds the tokens that a batch may come to.
    """
    decoded: dict[int, Decoded] = {}
    for indices in plan_batches([len(prompt) + max_new_tokens for prompt in prompts], max_batch_tokens):
        for one in sample(
            policy.model,
            [prompts[i] for i in indices],
            max_new_tokens=max_new_tokens,
            temperature=policy.temperature,
            seeds=[seeds[i] for i in indices],
            stop_ids=stop_ids,
        ):
            decoded[indices[one.index]] = one
    ordered = [decoded[i] for i in range(len(prompts))]
    width = max(len(one.ids) for one in ordered)
    device = policy.model.device
    lengths = torch.tensor([len(one.ids) for one in ordered], device=device)
    return Rollout(
        rows=[Row([*prompt, *one.ids], len(prompt)) for prompt, one in zip(prompts, ordered, strict=True)],
        mask=(torch.arange(width, device=device) < lengths[:, None]).float(),
        logp=torch.tensor([one.logps + [0.0] * (width - len(one.logps)) for one in ordered], device=device),
        finished=torch.tensor([one.finished for one in ordered], device=device),
    )


@torch.no_grad()
def per_token(rollout: Rollout, function: Callable[[Packed], Tensor], max_tokens: int, dtype: str) -> Tensor:
    """`function`, which gives (M) for the response tokens of a batch, of every response token as (B, T), 0 on padding;
    computed in length-sorted batches of `max_tokens`, in mixed precision where `dtype` is bfloat16.
    """
    device, out = rollout.mask.device, torch.zeros_like(rollout.mask)
    for indices in plan_batches([len(row.ids) for row in rollout.rows], max_tokens):
        with autocast(device, dtype):
            flat = function(pack([rollout.rows[i] for i in indices], device))
        part = torch.zeros_like(out[indices])
        part[rollout.mask[indices].bool()] = flat
        out[indices] = part
    return out
