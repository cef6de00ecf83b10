"""The value function of PPO: what it reads, and how its head is fitted before the first update."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from policies import PROMPTS, count_of, rows_of, trainer, value_model

from cai.rl.models import Policy, pack, score_head
from cai.rl.rollout import Rollout
from cai.rl.values import SharedValue, fit


def test_values_are_read_before_each_response_token(tmp_path: Path) -> None:
    value, rows = value_model(tmp_path), rows_of([(3, 4), (1, 2), (5, 1)])
    head = score_head(value.model).weight[0].detach().clone()
    value.set_head(2 * head, 0.5)
    with torch.no_grad():
        packed = value.values(pack(rows))
        expected = []
        for row in rows:
            hidden = value.model.base_model(torch.tensor([row.ids])).last_hidden_state[0]
            expected.append(2 * hidden[row.num_prompt - 1 : -1] @ head + 0.5)
    assert torch.allclose(packed, torch.cat(expected), atol=1e-5)


def numbered_rollout(lengths: Sequence[tuple[int, int]]) -> Rollout:
    rows = rows_of(lengths)
    sizes = torch.tensor([size for _, size in lengths])
    mask = (torch.arange(int(sizes.max())) < sizes[:, None]).float()
    return Rollout(rows, mask, torch.zeros_like(mask), torch.ones(len(rows), dtype=torch.bool))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("max_tokens", [8, 4096])
def test_the_value_head_is_the_ridge_regression_of_the_rewards_to_go(
    tmp_path: Path, shared: bool, max_tokens: int
) -> None:
    """Against numpy on all rows at once; in batches of one row, the same."""
    rollout = numbered_rollout([(3, 4), (1, 2), (5, 1), (2, 6)])
    rewards = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0)) * rollout.mask
    value = SharedValue(Policy(tiny_models.llama(30)), coefficient=0.1) if shared else value_model(tmp_path)
    fit(value, rollout, rewards, max_tokens, "float32")
    features, to_go, values = [], [], []
    with torch.no_grad():
        for row, row_rewards, mask in zip(rollout.rows, rewards, rollout.mask.bool(), strict=True):
            features.append(value.states(pack([row])))
            real = row_rewards[mask]
            to_go += [float(real[t:].sum()) for t in range(len(real))]
            values.append(value.values(pack([row])))
    x, y = torch.cat(features).double().numpy(), np.array(to_go)
    x_c, y_c = x - x.mean(0), y - y.mean()
    covariance = x_c.T @ x_c / len(y)
    penalty = 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weight = np.linalg.solve(covariance + penalty, x_c.T @ y_c / len(y))
    assert torch.cat(values).numpy() == pytest.approx(y.mean() + x_c @ weight, abs=1e-4)
    assert float(np.var(torch.cat(values).numpy() - y)) < 0.5 * float(np.var(y))


def test_a_fitted_value_function_comes_back_from_its_state(tmp_path: Path) -> None:
    rollout, first, second = numbered_rollout([(3, 4), (2, 6)]), value_model(tmp_path), value_model(tmp_path)
    fit(first, rollout, rollout.mask, 4096, "float32")
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(second.values(pack(rollout.rows)), first.values(pack(rollout.rows)))
    assert first.offset != 0


@pytest.mark.parametrize("value", ["reward_model", "shared"])
def test_values_that_were_fitted_explain_the_first_rollout(tmp_path: Path, value: str) -> None:
    """Of other responses than those that they were fitted to; as it comes, a head is worse than a constant."""
    explained = []
    for fitted in (False, True):
        made = trainer(tmp_path, count_of(8), value=value, beta=0.0, missing_eos_penalty=0.0, batch_size=128)
        if fitted:
            rollout = made.fit_value(PROMPTS * 32)
            assert len(rollout.rows) == 128
        explained.append(made.update(PROMPTS * 32).diagnostics["explained_variance"])
    assert explained[0] < 0 < 0.01 < explained[1]


@pytest.mark.parametrize("shared", [False, True])
def test_states_that_are_all_alike_leave_the_mean(tmp_path: Path, shared: bool) -> None:
    """One prompt, responses of one token: the bandit."""
    rollout = numbered_rollout([(3, 1)] * 4)
    rollout = replace(rollout, rows=[rollout.rows[0]] * 4)
    value = SharedValue(Policy(tiny_models.llama(30)), coefficient=0.1) if shared else value_model(tmp_path)
    fit(value, rollout, torch.tensor([[1.0], [2.0], [3.0], [6.0]]), 4096, "float32")
    with torch.no_grad():
        assert value.values(pack(rollout.rows)).tolist() == pytest.approx([3.0] * 4, abs=1e-3)
