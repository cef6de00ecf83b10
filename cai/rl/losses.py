"""Tensor maths of reward learning and PPO: pure functions, no models, no state.

Shape letters: B = responses, T = response tokens (padded to the longest), V = vocabulary, N = responses of a batch of
comparisons, P = labelled pairs of that batch. `mask` is 1 for the tokens of a response up to and including its
end-of-turn token and 0 for padding, which always comes last (right-packed rows), so nothing here looks at token ids.

Rewards are undiscounted (gamma = 1), as in every RLHF paper: one prompt, one response, one score (InstructGPT section
3.5). Losses come back per token; the caller divides their sum by the token count of the whole minibatch, which makes
the gradient independent of how a minibatch is cut into microbatches.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "adapted_beta",
    "bradley_terry_loss",
    "explained_variance",
    "gae",
    "kl_k1",
    "kl_k3",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "policy_loss",
    "selective_log_softmax",
    "shaped_rewards",
    "value_loss",
]

# Elements of a logits slice that is upcast and exponentiated at a time: 64 MiB in float32.
_CHUNK_ELEMENTS = 1 << 24


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1; both of one shape. The result is a scalar."""
    return (values * mask).sum() / mask.sum()


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance of `values` where `mask` is 1 (`tf.moments`, as in Ziegler et al.'s code)."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`(values - mean) / sqrt(var + 1e-8)` with masked statistics; padding comes back as 0."""
    centred = values - masked_mean(values, mask)
    return centred * torch.rsqrt(masked_var(values, mask) + 1e-8) * mask


def selective_log_softmax(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token at a temperature: `logit_y / T - logsumexp(logits / T)`, in float32.

    `logits` (M, V), `tokens` (M) -> (M). Rows are taken in slices, so that the forward pass makes no second array of
    the size of `logits` (with gradients on, half precision or T != 1 does: its slices are kept for the backward pass).
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    norms = [_tempered(part, temperature).logsumexp(-1) for part in torch.split(logits, rows)]
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return _tempered(chosen, temperature) - torch.cat(norms)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def kl_k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """k1 estimate of KL(policy || reference) at tokens sampled from the policy: the log-ratio (unbiased, signed)."""
    return logp - logp_ref


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """k3 estimate, `exp(-l) - 1 + l` with l the log-ratio: unbiased, never negative (Schulman, "Approximating KL")."""
    log_ratio = logp - logp_ref
    return torch.expm1(-log_ratio) + log_ratio


def adapted_beta(beta: float, kl: float, target: float, num_episodes: int, horizon: int) -> float:
    """The next weight of the KL penalty, `beta * (1 + e * n / horizon)` with `e = clip(kl / target - 1, -0.2, 0.2)`
    (Ziegler et al. 2019, section 2.2). `kl` and `target` in nats per response; n = `num_episodes` since the last call.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * num_episodes / horizon)


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of every token: `-beta * kl_t`, plus the score at the last one (Ziegler et al. 2019, section 2.1).

    `scores` (B), `kl` (B, T) from the log-probabilities stored at rollout, `mask` (B, T) -> (B, T). The last token is
    the end-of-turn token, or the token at which the response was cut off: both end the episode.
    """
    rewards = -beta * kl * mask
    last = mask.sum(1).long() - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) with gamma = 1.

    `delta_t = r_t + V_{t+1} - V_t` with V = 0 after the last token, `A_t = delta_t + lam * A_{t+1}`, `R_t = A_t + V_t`.
    `rewards`, `values`, `mask` (B, T), where `values[:, t]` is the value of the prefix *before* response token t.
    Returns advantages (not whitened) and returns, both (B, T) and 0 on padding.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards * mask + following - values) * mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def policy_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate, `max(-A rho, -A clip(rho, 1 - clip, 1 + clip))` (Schulman et al. 2017, eq. 7).

    All of one shape; returns the loss per token and whether the clipped branch won (bool), of the same shape.
    """
    ratio = torch.exp(logp - logp_old)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(values: Tensor, values_old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped value loss, `max((V - R)^2, (V_clip - R)^2) / 2` with `V_clip = clip(V, V_old - clip, V_old + clip)`.

    As in Ziegler et al.'s code. All of one shape; returns the loss per token and whether the clipped branch won.
    """
    plain = (values - returns) ** 2
    clipped = (values_old + (values - values_old).clamp(-clip, clip) - returns) ** 2
    return torch.maximum(plain, clipped) / 2, clipped > plain


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """`1 - mean((V - R)^2) / var(R)` over real tokens; 1 is perfect, 0 no better than a constant."""
    return 1 - masked_mean((values - returns) ** 2, mask) / (masked_var(returns, mask) + 1e-8)


def bradley_terry_loss(
    rewards: Tensor,
    first: Tensor,
    second: Tensor,
    p: Tensor,
    weight: Tensor,
    margin: Tensor | float = 0.0,
    *,
    total_weight: Tensor | float | None = None,
) -> Tensor:
    """Bradley-Terry loss with soft labels over groups of responses: a scalar, the weighted mean over pairs of
    `-(p log sigmoid(d - m) + (1 - p) log sigmoid(-d - m))` with `d = r_first - r_second`.

    `rewards` (N) flat over all prompts; `first`, `second` (P) index into them; `p` (P) is the probability that `first`
    is preferred; `weight` (P) is 1 / C(K, 2) for a prompt with K responses (InstructGPT eq. 1), so that every prompt
    counts once. With p = 1 and m = 0 this is `-log sigmoid(r_w - r_l)`; its optimum is d = logit p.

    `margin` (P) is what the preferred response, whichever it is, has to be ahead by (Llama 2, Touvron et al. 2023,
    eq. 2): a soft label takes the mean of its two verdicts' losses, so that at p = 1/2 the optimum stays d = 0.
    `total_weight` (scalar) is that of all microbatches of a step, whose losses then sum to that of the step.
    """
    delta = (rewards[first] - rewards[second]).float()
    losses = -(p * logsigmoid(delta - margin) + (1 - p) * logsigmoid(-delta - margin))
    return (weight * losses).sum() / (weight.sum() if total_weight is None else total_weight)
