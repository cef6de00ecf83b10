"""Losses against numbers worked out by hand, and against what must not matter: padding, order, microbatches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cai.rl import losses


def close(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-6) -> bool:
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tolerance, rtol=0)


def ragged(lengths: list[int], extra: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random values (B, T) and the mask of rows of these lengths; padding holds large numbers that must not leak."""
    width = max(lengths) + extra
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).float()
    values = torch.full((len(lengths), width), 1e3)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, generator=torch.Generator().manual_seed(seed + row))
    return values, mask


# --- masked statistics ------------------------------------------------------------------------------------------------


def test_masked_statistics_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert close(losses.masked_mean(values, mask), 3.0)
    assert close(losses.masked_var(values, mask), (4 + 1 + 9) / 3)  # biased: divided by 3, not by 2
    white = losses.masked_whiten(values, mask)
    assert close(white, torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / math.sqrt(14 / 3))


def test_whitening_does_not_see_padding() -> None:
    values, mask = ragged([3, 1, 5])
    wide, wide_mask = ragged([3, 1, 5], extra=4)
    assert close(losses.masked_whiten(wide, wide_mask)[:, :5], losses.masked_whiten(values, mask))
    assert not losses.masked_whiten(wide, wide_mask)[:, 5:].any()


def test_whitening_a_constant_gives_zero_and_not_nan() -> None:
    assert not losses.masked_whiten(torch.full((2, 2), 7.0), torch.ones(2, 2)).any()


# --- log-probabilities and KL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (7, 0.5), (1 << 24, 1.0), (1 << 24, 2.0)])
def test_selective_log_softmax_is_the_gathered_log_softmax(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", chunk)
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3
    logits.requires_grad_()
    tokens = torch.tensor([0, 4, 2, 2, 1, 3])
    expected = (logits / temperature).log_softmax(-1)[torch.arange(6), tokens]
    got = losses.selective_log_softmax(logits, tokens, temperature)
    assert close(got, expected, 1e-5)
    weights = torch.arange(6.0)
    gradients = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (got, expected)]
    assert close(*gradients, 1e-5)


def test_log_softmax_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = (torch.randn(4, 300, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    tokens = torch.tensor([1, 2, 3, 299])
    got = losses.selective_log_softmax(logits, tokens)
    assert got.dtype == torch.float32
    assert close(got, logits.float().log_softmax(-1)[torch.arange(4), tokens], 1e-5)


def test_kl_estimators_by_monte_carlo_against_the_sum() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2]).log()
    reference = torch.tensor([0.2, 0.3, 0.5]).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    for estimate in (losses.kl_k1, losses.kl_k3):
        samples = estimate(policy[tokens], reference[tokens])
        error = 5 * float(samples.std()) / math.sqrt(len(samples))
        assert abs(float(samples.mean()) - exact) < error < 0.02
        # and without sampling error: the expectation over the three tokens is the KL itself
        assert close((policy.exp() * estimate(policy, reference)).sum(), exact)
    assert (losses.kl_k3(policy, reference) >= 0).all()
    assert (losses.kl_k1(policy, reference) < 0).any()


# --- rewards and advantages -------------------------------------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 5.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    rewards = losses.shaped_rewards(torch.tensor([2.0, -1.0]), kl, mask, beta=0.5)
    assert close(rewards, torch.tensor([[-0.05, -0.1, 1.85], [-1.2, 0.0, 0.0]]))


def test_gae_by_hand() -> None:
    # delta = [0 + .4 - .5, 0 + .8 - .4, 1 + 0 - .8] = [-.1, .4, .2]; lambda .5: A = [.15, .5, .2]
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.4, 0.8, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    advantages, returns = losses.gae(rewards, values, mask, lam=0.5)
    assert close(advantages, torch.tensor([[0.15, 0.5, 0.2, 0.0]]))
    assert close(returns, torch.tensor([[0.65, 0.9, 1.0, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 5))
def test_gae_of_any_lengths(lengths: list[int], lam: float, extra: int) -> None:
    rewards, mask = ragged(lengths, extra, seed=1)
    values, _ = ragged(lengths, extra, seed=100)
    advantages, returns = losses.gae(rewards, values, mask, lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].double(), torch.cat([values[row, :length], torch.zeros(1)]).double()
        expected, running = [], 0.0
        for t in reversed(range(length)):  # the definition, row by row without padding
            running = float(r[t] + v[t + 1] - v[t]) + lam * running
            expected.insert(0, running)
        assert close(advantages[row, :length], torch.tensor(expected), 1e-5)
        assert not advantages[row, length:].any() and not returns[row, length:].any()


def test_gae_at_lambda_one_is_return_minus_value_and_at_zero_the_td_error() -> None:
    rewards, mask = ragged([4, 2, 1], seed=3)
    values, _ = ragged([4, 2, 1], seed=30)
    togo = torch.flip(torch.cumsum(torch.flip(rewards * mask, [1]), 1), [1]) * mask
    advantages, returns = losses.gae(rewards, values, mask, lam=1.0)
    assert close(advantages, (togo - values) * mask, 1e-5)
    assert close(returns, togo, 1e-5)
    advantages, _ = losses.gae(rewards, values, mask, lam=0.0)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(3, 1)], 1)
    assert close(advantages, (rewards + following - values) * mask, 1e-5)


def test_without_kl_the_return_of_every_token_is_the_score() -> None:
    _, mask = ragged([3, 1])
    rewards = losses.shaped_rewards(torch.tensor([2.0, -1.0]), torch.zeros(2, 3), mask, beta=0.0)
    _, returns = losses.gae(rewards, torch.randn(2, 3), mask, lam=1.0)
    assert close(returns, torch.tensor([[2.0, 2.0, 2.0], [-1.0, 0.0, 0.0]]))


# --- PPO losses -------------------------------------------------------------------------------------------------------


def test_policy_loss_by_hand() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, clipped = losses.policy_loss(ratio.log(), torch.zeros(5), advantages, clip=0.2)
    assert close(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.0]))
    assert clipped.tolist() == [True, False, False, True, False]


def test_policy_gradient_is_cut_where_the_clip_wins() -> None:
    logp = torch.tensor([1.5, 0.9]).log().requires_grad_()
    loss, _ = losses.policy_loss(logp, torch.zeros(2), torch.ones(2), clip=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert close(gradient, torch.tensor([0.0, -0.9]))  # d(-A rho)/d logp = -A rho


def test_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.5, 0.5, 0.0]), torch.tensor([2.0, 0.9, 1.0])
    loss, clipped = losses.value_loss(values, old, returns, clip=0.2)
    # V_clip = [.7, .7, .1]: (.7 - 2)^2 > (1 - 2)^2; (.7 - .9)^2 > (1 - .9)^2; equal
    assert close(loss, torch.tensor([1.69, 0.04, 0.81]) / 2)
    assert clipped.tolist() == [True, True, False]


def test_explained_variance() -> None:
    returns, mask = ragged([4, 2, 3])
    assert close(losses.explained_variance(returns, returns, mask), 1.0)
    constant = torch.full_like(returns, float(losses.masked_mean(returns, mask)))
    assert close(losses.explained_variance(constant, returns, mask), 0.0, 1e-5)


# --- Bradley-Terry ----------------------------------------------------------------------------------------------------


def one_pair(delta: float, p: float) -> Tensor:
    rewards = torch.tensor([delta, 0.0])
    return losses.bradley_terry_loss(
        rewards, torch.tensor([0]), torch.tensor([1]), torch.tensor([p]), torch.tensor([1.0])
    )


def test_the_pair_of_the_lecture_slide() -> None:
    """r_w = 1.23, r_l = 4.59: P(y_w) = .0336, and the natural-log loss 3.394 (the slide's 1.474 is log base 10)."""
    loss = one_pair(1.23 - 4.59, 1.0)
    assert close(loss, 3.394, 5e-4)
    assert close(torch.exp(-loss), 0.0336, 5e-5)
    assert close(loss / math.log(10), 1.474, 5e-4)


def test_soft_labels() -> None:
    delta, p = 0.7, 0.3
    s = 1 / (1 + math.exp(-delta))
    assert close(one_pair(delta, p), -(p * math.log(s) + (1 - p) * math.log(1 - s)))
    assert close(one_pair(delta, 0.0), one_pair(-delta, 1.0))  # swapping the responses swaps the label
    assert close(one_pair(0.0, p), math.log(2))


@pytest.mark.parametrize("p", [0.5, 0.4, 0.9])
def test_the_optimum_is_logit_p(p: float) -> None:
    rewards = torch.tensor([math.log(p / (1 - p)), 0.0], requires_grad=True)
    pair = (torch.tensor([0]), torch.tensor([1]), torch.tensor([p]), torch.tensor([1.0]))
    (gradient,) = torch.autograd.grad(losses.bradley_terry_loss(rewards, *pair), rewards)
    assert close(gradient, torch.zeros(2), 1e-7)
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.bradley_terry_loss(rewards, *pair), rewards)
    assert close(gradient[0], 1 / (1 + math.exp(-1)) - p)  # sigmoid(delta) - p


def test_extreme_differences_stay_finite() -> None:
    assert close(one_pair(-300.0, 1.0), 300.0)
    assert close(one_pair(300.0, 1.0), 0.0)


def test_k_wise_groups_equal_exploded_pairs_and_prompts_count_once() -> None:
    """A prompt with 3 responses and one with 2: the loss is the mean over prompts of the mean over their pairs."""
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])
    first, second = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4])
    p = torch.tensor([0.9, 0.2, 0.5, 1.0])
    loss = losses.bradley_terry_loss(rewards, first, second, p, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))
    singles = [
        float(one_pair(float(rewards[i] - rewards[j]), float(q))) for i, j, q in zip(first, second, p, strict=True)
    ]
    assert close(loss, (sum(singles[:3]) / 3 + singles[3]) / 2)


def test_k_wise_gradients_equal_those_of_exploded_pairs() -> None:
    """Three responses scored once, or once for each pair that they are in: the network's gradient is the same."""
    states = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4])
    p, weight = torch.tensor([0.9, 0.2, 1.0, 0.0]), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    gradients = []
    for rows, i, j in (
        (states, first, second),
        (torch.cat([states[first], states[second]]), torch.arange(4), torch.arange(4, 8)),
    ):
        head = torch.full((4,), 0.3, requires_grad=True)
        loss = losses.bradley_terry_loss(torch.tanh(rows @ head), i, j, p, weight)
        gradients.append(torch.autograd.grad(loss, head)[0])
    assert float(gradients[0].norm()) > 0.01
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-6


def test_soft_labels_of_zero_and_one_are_hard_ones() -> None:
    delta = torch.linspace(-3, 3, 13)
    for p, sign in ((1.0, 1.0), (0.0, -1.0)):
        rewards = torch.cat([delta, torch.zeros(13)]).requires_grad_()
        pairs = (torch.arange(13), torch.arange(13, 26), torch.full((13,), p), torch.ones(13))
        soft = losses.bradley_terry_loss(rewards, *pairs)
        hard = -torch.nn.functional.logsigmoid(sign * (rewards[:13] - rewards[13:])).mean()
        assert close(soft, hard)
        assert close(*(torch.autograd.grad(loss, rewards)[0] for loss in (soft, hard)))


def test_a_margin_by_hand() -> None:
    """Llama 2, eq. 2: -log sigmoid(r_w - r_l - m); a soft label takes the mean of its two verdicts."""

    def loss(delta: float, p: float, margin: float) -> Tensor:
        pair = (torch.tensor([0]), torch.tensor([1]), torch.tensor([p]), torch.tensor([1.0]))
        return losses.bradley_terry_loss(torch.tensor([delta, 0.0]), *pair, torch.tensor([margin]))

    assert close(loss(2.0, 1.0, 0.5), math.log(1 + math.exp(-1.5)))
    assert close(loss(2.0, 0.0, 0.5), math.log(1 + math.exp(2.5)))
    assert close(loss(2.0, 0.3, 0.5), 0.3 * math.log(1 + math.exp(-1.5)) + 0.7 * math.log(1 + math.exp(2.5)))
    assert loss(0.7, 0.3, 0.0) == one_pair(0.7, 0.3)  # no margin: the same bits
    assert loss(0.1, 0.5, 1.0) > loss(0.0, 0.5, 1.0) < loss(-0.1, 0.5, 1.0)


def test_label_weights_are_relative() -> None:
    rewards, pairs = torch.tensor([1.0, 0.0, 2.0]), (torch.tensor([0, 0]), torch.tensor([1, 2]), torch.ones(2))
    loss = losses.bradley_terry_loss(rewards, *pairs, torch.tensor([3.0, 1.0]))
    assert close(loss, (3 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 4)
