"""The trunk without padding is the model's own: states and gradients, any attention heads, any rows."""

import gc
import weakref

import pytest
import tiny_models
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cai.models.flat import flat_states, is_plain_llama

ROWS = [[1, 4, 9, 12, 7, 7], [1], [1, 5, 6, 6, 7, 8, 9, 10, 11, 0, 0], [3, 2]]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, where the tokens are, and some positions; padding is full of a real token."""
    length = max(map(len, ROWS))
    ids = torch.tensor([row + [9] * (length - len(row)) for row in ROWS])
    real = torch.tensor([[column < len(row) for column in range(length)] for row in ROWS])
    where = real & (torch.arange(length) % 3 != 1)
    return ids, real, where


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_states_and_gradients_are_the_models_own(kv_heads: int) -> None:
    model = tiny_models.llama(30, kv_heads=kv_heads)
    assert is_plain_llama(model)
    ids, real, where = batch()
    weights = torch.randn(int(where.sum()), model.config.hidden_size, generator=torch.Generator().manual_seed(1))

    def gradient(states: Tensor) -> Tensor:
        model.zero_grad()
        (states * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None])

    own = model.model(input_ids=ids, attention_mask=real.long(), use_cache=False).last_hidden_state[where]
    flat = flat_states(model, ids, real, where)
    assert torch.allclose(flat, own, atol=2e-5)
    expected, found = gradient(own), gradient(flat)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_half_precision_is_close() -> None:
    model = tiny_models.llama(30)
    ids, real, where = batch()
    with torch.no_grad():
        full = flat_states(model, ids, real, where)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = flat_states(model, ids, real, where)
        half = flat_states(model.to(torch.bfloat16), ids, real, where)
    assert mixed.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert (mixed - full).abs().max() < 0.1 * full.abs().max()
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def test_other_models_are_left_to_their_own_forward() -> None:
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    others: list[PreTrainedModel] = [
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True)),
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, hidden_act="gelu")),
        GraniteForCausalLM(GraniteConfig(**sizes, **heads)),
    ]
    assert [is_plain_llama(model) for model in others] == [False] * 3


def test_what_is_known_of_a_model_does_not_keep_it() -> None:
    """A run's networks would stay in memory for the next."""
    model = tiny_models.llama(30)
    assert is_plain_llama(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
