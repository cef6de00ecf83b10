"""The memory budget of PPO: hand-computed parts, and what is said when it does not fit."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from transformers import LlamaConfig

from cai.errors import ModelError
from cai.rl.memory import Budget, budget, check_budget, free_bytes
from cai.rl.settings import PPOSettings

GIB = 2**30
SETTINGS = PPOSettings(seed=0, batch_size=64, max_new_tokens=100, max_batch_tokens=1000)


def test_the_parts_are_what_a_pencil_gives() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    found = budget(SETTINGS, config, 1000, longest_prompt=60, max_tokens=1000)
    assert found.networks == 1000 * (2 * 16 + 2 * 4)  # two trained with gradient and two moments, two frozen
    assert found.activations == 1000 * (3 * (10 * 8 + 4 * 24) * 4 * 2 + 3 * 50 * 4)
    assert found.cache == (8 * 1000 // 160) * 160 * 3 * 2 * (2 * 2) * 4
    assert found.peak == found.networks + max(found.activations, found.cache)
    shared = budget(replace(SETTINGS, value="shared"), config, 1000, longest_prompt=60, max_tokens=1000)
    assert shared.networks == 1000 * (16 + 8) and shared.activations < found.activations
    half = budget(replace(SETTINGS, dtype="bfloat16"), config, 1000, longest_prompt=60, max_tokens=1000)
    assert half.networks == 1000 * (2 * 16 + 2 * 2) and half.cache == found.cache // 2
    long = budget(SETTINGS, config, 1000, longest_prompt=3000, max_tokens=1000)
    assert long.activations == found.activations // 1000 * 3100  # a row is never cut


def test_what_does_not_fit_is_refused_and_what_may_not_is_said() -> None:
    needed = Budget(networks=4 * GIB, activations=GIB, cache=2 * GIB)
    assert check_budget(needed, 8 * GIB).endswith("8.0 GiB free")
    assert check_budget(needed, None) == f"ppo: needs {needed}" and "6.0 GiB (networks and optimisers 4.0 GiB" in str(
        needed
    )
    assert "a smaller max_batch_tokens needs less" in check_budget(needed, 5 * GIB)
    with pytest.raises(ModelError, match=r"3\.0 GiB free: a smaller model, adapters"):
        check_budget(needed, 3 * GIB)


def test_what_is_free_here() -> None:
    free = free_bytes("cpu")
    assert free is None or free > 0


def test_a_real_network_is_counted_right() -> None:
    model = tiny_models.llama(30)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    tensors = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t is not None]
    trained = sum(t.numel() * t.element_size() for t in tensors if t.ndim)
    found = budget(
        replace(SETTINGS, value="shared"), model.config, model.num_parameters(), longest_prompt=5, max_tokens=9
    )
    assert found.networks - 2 * 4 * model.num_parameters() == trained
