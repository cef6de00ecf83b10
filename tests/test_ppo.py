"""PPO on tiny models: invariances of an update, known optima."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from policies import END, PROMPTS, count_of, settings, trainer, weights
from torch import Tensor
from transformers import PreTrainedModel

from cai.rl.learner import rate_factor
from cai.rl.models import Policy, Row
from cai.rl.settings import DIAGNOSTICS

# --- one update -------------------------------------------------------------------------------------------------------


def test_before_the_first_step_ratio_is_one_and_kl_zero(tmp_path: Path) -> None:
    update = trainer(tmp_path, count_of(8)).update(PROMPTS)
    figures = update.diagnostics
    assert sorted([*figures, "ptx_loss"]) == sorted(DIAGNOSTICS)
    assert figures["first_approx_kl"] < 1e-10 and figures["clipfrac"] == 0 and figures["value_clipfrac"] == 0
    assert abs(figures["kl"]) < 1e-4 and figures["kl_k3"] < 1e-6
    # at ratio 1 the policy loss is minus the mean whitened advantage: 0
    assert abs(figures["policy_loss"]) < 1e-5
    assert figures["entropy"] == pytest.approx(-float((update.rollout.logp).sum() / update.rollout.mask.sum()))


def test_each_minibatch_of_each_epoch_is_a_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, count_of(8), batch_size=8, minibatch_size=2, num_epochs=3)
    made.update(PROMPTS * 2)
    for optimizer in made.learner._optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {12}


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 40])
def test_microbatches_do_not_change_the_update(max_batch_tokens: int, tmp_path: Path) -> None:
    """Gradients, so weights after a plain step; Adam would turn rounding near 0 into whole steps."""

    def gradients(size: int) -> Tensor:
        sizes = {"max_batch_tokens": size, "minibatch_size": 8, "batch_size": 8}
        made = trainer(tmp_path, count_of(8), learning_rate=1.0, value_learning_rate=1.0, **sizes)
        made.learner._optimizers = [torch.optim.SGD(o.param_groups[0]["params"]) for o in made.learner._optimizers]
        before = weights(made.policy.model), weights(made.value.model)
        made.update(PROMPTS * 2)
        return torch.cat([weights(made.policy.model) - before[0], weights(made.value.model) - before[1]])

    whole = gradients(4096)
    assert whole.abs().max() > 1e-2
    assert torch.allclose(gradients(max_batch_tokens), whole, atol=1e-5)


def test_a_response_that_was_cut_off_is_closed_scored_and_penalised(tmp_path: Path) -> None:
    seen: list[Row] = []

    def reward(rows: Sequence[Row]) -> Tensor:
        seen.extend(rows)
        return torch.ones(len(rows))

    stop_ids = [END, *range(5, 15)]
    changes = {"missing_eos_penalty": 0.75, "beta": 0.0, "lam": 1.0, "max_new_tokens": 2}
    made = trainer(tmp_path, reward, reward_scale=3.0, stop_ids=stop_ids, **changes)
    update = made.update(PROMPTS * 8)
    finished = update.rollout.finished
    assert all(
        row.ids[-1] in stop_ids if done else row.ids[-1] == END for row, done in zip(seen, finished, strict=True)
    )
    assert [len(row.ids) for row in seen] == [
        len(row.ids) + (not done) for row, done in zip(update.rollout.rows, finished.tolist(), strict=True)
    ]
    assert 0 < float(finished.float().mean()) == update.diagnostics["eos_rate"] < 1
    expected = torch.where(finished, 3.0, 3.0 - 0.75)
    assert torch.allclose(update.returns[:, 0], expected, atol=1e-5)
    assert update.diagnostics["score_mean"] == 1.0
    assert update.diagnostics["objective"] == pytest.approx(float(expected.mean()))


def test_kl_is_measured_and_charged(tmp_path: Path) -> None:
    """A policy that is not the reference: k1 per sequence is the log-ratio of single rows, and lowers the returns."""
    made = trainer(tmp_path, lambda rows: torch.zeros(len(rows)), beta=0.5, lam=1.0, missing_eos_penalty=0.0)
    made.policy = Policy(tiny_models.llama(len(tiny_models.word_tokenizer()), seed=1))
    reference = made.reference.model
    policy = tiny_models.llama(len(tiny_models.word_tokenizer()), seed=1)
    update = made.update(PROMPTS)
    ratios = []
    for row in update.rollout.rows:
        start = row.num_prompt - 1
        ratios.append(
            (tiny_models.full_logps(policy, row.ids) - tiny_models.full_logps(reference, row.ids))[start:].sum()
        )
    kl = torch.stack(ratios)
    assert update.diagnostics["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert torch.allclose(update.returns[:, 0].double(), -0.5 * kl, atol=1e-4)
    assert update.diagnostics["objective"] == pytest.approx(-0.5 * float(kl.mean()), rel=1e-4)


def test_learning_rates_warm_up_then_fall_or_stay(tmp_path: Path) -> None:
    def rates(**changes: Any) -> list[float]:
        return [rate_factor(settings(num_updates=4, **changes), update) for update in range(4)]

    assert rates(num_warmup_updates=1) == [0.5, 1.0, 1.0, 1.0]
    assert rates(schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(schedule="linear", num_warmup_updates=3) == [0.25, 0.375, 0.375, 0.25]
    made = trainer(tmp_path, count_of(8), num_updates=2, schedule="linear")
    assert [made.update(PROMPTS).diagnostics["learning_rate"] for _ in range(2)] == [1e-3, 5e-4]


# --- known optima -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_token_that_pays_is_learnt(tmp_path: Path) -> None:
    """No KL penalty, one unit per `key`: eight tokens of it are the optimum, chance is a thirtieth of that."""
    made = trainer(
        tmp_path, count_of(8), beta=0.0, learning_rate=5e-3, value_learning_rate=5e-3, missing_eos_penalty=0.0,
        batch_size=64, minibatch_size=16, value_clip=10.0, num_updates=25,
    )  # fmt: skip
    updates = [made.update(PROMPTS * 16) for _ in range(25)]
    scores = [update.diagnostics["score_mean"] for update in updates]
    assert scores[0] < 1.5 and scores[-1] > 7.0
    assert updates[-1].diagnostics["kl"] > 5  # nothing held it back
    # The critic comes from below nothing to explaining some of the returns, until they no longer vary.
    explained = [update.diagnostics["explained_variance"] for update in updates]
    assert explained[0] < -5 and max(explained[:10]) > 0.1


@pytest.mark.parametrize(
    "beta", [pytest.param(0.3, marks=pytest.mark.slow), 1.0, pytest.param(3.0, marks=pytest.mark.slow)]
)
def test_the_one_step_bandit_reaches_its_closed_form(beta: float, tmp_path: Path) -> None:
    """One token per response: the optimum of E[r] - beta KL is the reference times exp(r / beta), normalised."""
    size = len(tiny_models.word_tokenizer())
    rewards = torch.sin(torch.arange(size) * 2.0)
    made = trainer(
        tmp_path, lambda rows: rewards[[row.ids[row.num_prompt] for row in rows]], beta=beta, max_new_tokens=1,
        missing_eos_penalty=0.0, batch_size=128, minibatch_size=64, num_updates=40, learning_rate=4e-3,
        value_learning_rate=4e-3, schedule="linear", value_clip=10.0,
    )  # fmt: skip
    prompt = torch.tensor([PROMPTS[0]])

    def distribution(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(prompt).logits[0, -1].double().log_softmax(-1)

    reference = distribution(made.reference.model)
    optimum = (reference + rewards / beta).log_softmax(-1)

    def regret(logp: Tensor) -> float:
        """How far a policy's E[r] - beta KL is below the optimum: beta KL(policy || optimum)."""
        return beta * float((logp.exp() * (logp - optimum)).sum())

    start = regret(reference)
    for _ in range(40):
        made.update([PROMPTS[0]] * 128)
    assert regret(distribution(made.policy.model)) < 0.01 * start
    assert start > 0.05
